"""GPUs of this host, by NVML. The only importer of pynvml; a host without it has no GPUs."""

from contextlib import suppress
from typing import Any

from cortex_shared.contracts.observed import GpuObserved
from cortex_shared.logs import get_logger

_log = get_logger("gpus")


class Gpus:
    """Reads NVML. Its calls block for some 0.1 ms each."""

    def __init__(self) -> None:
        self._nvml: Any = None

    @property
    def present(self) -> bool:
        """Whether NVML was loaded."""
        return self._nvml is not None

    def open(self) -> None:
        """Load NVML if there is one. Without, `read` gives an empty list."""
        try:
            import pynvml  # here: only where it is used

            pynvml.nvmlInit()
        except (ImportError, OSError, AttributeError) as error:
            _log.info("gpus.none", reason=repr(error))
        except Exception as error:  # noqa: BLE001 (pynvml makes its error classes at run time)
            _log.info("gpus.none", reason=str(error))
        else:
            self._nvml = pynvml

    def read(self) -> list[GpuObserved]:
        """All GPUs, in NVML's order; one that fails to answer is left out."""
        if self._nvml is None:
            return []
        nvml = self._nvml
        found: list[GpuObserved] = []
        try:
            count = int(nvml.nvmlDeviceGetCount())
        except nvml.NVMLError as error:
            _log.warning("gpus.unreadable", error=str(error))
            return []
        for index in range(count):
            with suppress(nvml.NVMLError):
                found.append(self._one(nvml.nvmlDeviceGetHandleByIndex(index), index))
        return found

    def _one(self, handle: Any, index: int) -> GpuObserved:
        nvml = self._nvml
        memory = nvml.nvmlDeviceGetMemoryInfo(handle)
        used: float | None = None
        celsius: float | None = None
        watts: float | None = None
        # Not every GPU says all of these (MIG parts, some virtual ones).
        with suppress(nvml.NVMLError):
            used = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        with suppress(nvml.NVMLError):
            celsius = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        with suppress(nvml.NVMLError):
            watts = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        return GpuObserved(
            uuid=_text(nvml.nvmlDeviceGetUUID(handle)),
            index=index,
            name=_text(nvml.nvmlDeviceGetName(handle)),
            memory_total_mib=memory.total >> 20,
            memory_used_mib=memory.used >> 20,
            utilization_ratio=used,
            temperature_celsius=celsius,
            power_watts=watts,
        )


def _text(value: str | bytes) -> str:
    return value.decode() if isinstance(value, bytes) else value
