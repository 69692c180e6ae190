"""A key that is revoked or narrowed in the API is refused by every gateway, and stays refused."""

from pathlib import Path

from tests.bench.revoke import fleet, measure
from tests.integration.gateway.harness import chat, request
from tests.servers import ServersUnderTest

# Far above the second that it may take: this must not fail by the load of a machine.
_MS_MAX = 10_000


async def test_a_change_of_a_key_holds_at_every_gateway(servers: ServersUnderTest, tmp_path: Path) -> None:
    async with fleet(servers, tmp_path) as (api, gateways):
        measured = await measure(api, gateways, 3)
        assert len(measured.revoked) == len(measured.narrowed) == 6
        assert max(measured.revoked + measured.narrowed) < _MS_MAX
        made = (await api.post("/keys", json={"name": "gone"})).json()
        assert (await api.delete(f"/keys/{made['id']}")).status_code == 204
        # The next change of the ring brings nothing back.
        await measure(api, gateways, 1)
        for gateway in gateways:
            raw = await gateway.connect()
            raw.send(request(chat(), authorization=f"Bearer {made['key']}"))
            assert (await raw.answer()).status == 401
            raw.close()
