"""What llama-server's last words mean."""

from cortex_api.engines.diagnosis import cause

CAUSES = (
    # Files beside the model's own come first: their lines are followed by complaints about the model.
    cause(
        r"failed to load lora adapter '(?P<what>[^']+)'",
        "bad_lora",
        "the LoRA adapter {what} cannot be loaded",
        "check lora: the file must be there, whole, and made for this model",
    ),
    cause(
        r"failed to load draft model, '(?P<what>[^']+)'",
        "bad_draft_model",
        "the draft model {what} cannot be loaded",
        "check draft_model_path: the file must be there, whole, and of the same vocabulary as the model",
    ),
    cause(
        r"failed to load multimodal model, '(?P<what>[^']+)'",
        "bad_mmproj",
        "the multimodal projector {what} cannot be loaded",
        "check mmproj: the file must be there, whole, and made for this model",
    ),
    cause(
        r"(?:there is no file|cannot read) '(?P<what>[^']+)'",
        "no_file",
        "there is no file {what} that can be read on the node",
        "check the path, and who may read it",
    ),
    cause(
        r"failed to read magic",
        "bad_file",
        "the file is empty, or too short to be a GGUF file",
        "copy or download it again",
    ),
    cause(
        r"GGUF file is version (?P<version>\d+) but this software only supports up to version (?P<most>\d+)",
        "unknown_format",
        "the file is GGUF version {version}, and this llama.cpp reads up to version {most}",
        "use a newer llama.cpp on the node; if the version is absurd, the file is damaged",
    ),
    cause(
        r"invalid magic|bad magic|not a gguf file|invalid GGUF (?:magic|header)",
        "bad_file",
        "the file is not a GGUF file: it has another magic number",
        "give the path of a .gguf file, or convert the model with llama.cpp's convert_hf_to_gguf.py",
    ),
    cause(
        r"tensor '(?P<tensor>[^']+)' data is not within the file bounds|file bounds|unexpected end of file"
        r"|failed to read (?:tensor|header|key-value)|corrupted or incomplete",
        "bad_file",
        "the file is truncated or damaged",
        "copy or download it again, and compare its size and SHA-256 with the source's",
    ),
    cause(
        r"unknown (?:model )?architecture:? '?(?P<arch>[\w.-]+)",
        "unknown_architecture",
        "this version of llama.cpp does not know the architecture {arch}",
        "use a newer llama.cpp on the node, or another model",
    ),
    cause(
        r"error: (?:invalid|unknown) argument:? (?P<flag>\S+)|(?P<flag2>--?\S+): unknown; ",
        "unknown_argument",
        "llama-server does not know an argument of this model: {flag}",
        "remove it from extra_args, or use another engine version",
    ),
    cause(
        r"(?P<flag>--?[\w-]+): it has been removed from llama-server; (?P<fix>.+)",
        "unknown_argument",
        "llama-server no longer has {flag}",
        "change extra_args: {fix}",
    ),
    cause(
        r"the argument has been removed|: it has been removed",
        "unknown_argument",
        "llama-server no longer has an argument of this model",
        "see its log for the successor, and change extra_args",
    ),
    cause(
        r"^cortex-llama-server: (?P<flag>--?[\w-]+): (?P<why>[^;]+); (?P<fix>.+)",
        "bad_argument",
        "llama-server refuses {flag}: {why}",
        "{fix}",
    ),
    cause(
        r"out of memory|cudaMalloc failed|failed to allocate (?:CUDA|buffer|compute)|unable to allocate"
        r"|bad_alloc|cannot allocate memory",
        "out_of_memory",
        "there is not enough memory for the model and its context",
        "lower context_size or parallel_slots, use a smaller quantization or cache_type_k q8_0, or lower ngl",
    ),
    cause(
        r"failed to create context|n_ctx.*(?:too large|exceed)|failed to initialize the context",
        "context_too_large",
        "the context could not be made",
        "lower context_size or parallel_slots",
    ),
    cause(
        r"error loading model: (?P<why>error loading model vocabulary.*|.*tokenizer.*|.*vocab.*)",
        "tokenizer_missing",
        "the file's tokenizer cannot be read: {why}",
        "convert the model again with its tokenizer, or use another file",
    ),
    cause(
        r"failed to open (?:GGUF file )?'(?P<what>[^']+)'|(?P<what2>[^ ']+)'?: no such file or directory",
        "no_file",
        "there is no file {what}",
        "check local_path, mmproj, lora and draft_model_path on the node",
    ),
    cause(
        r"(?:jinja|chat template|template).*(?:error|exception|failed|not supported)",
        "bad_template",
        "the chat template cannot be used",
        "give another chat_template, for instance chatml",
    ),
    cause(
        r"CUDA error:? (?P<what>.+)|ggml_cuda.*error",
        "gpu_fault",
        "CUDA failed: {what}",
        "check the driver with nvidia-smi; try again with ngl 0 to see whether the GPU is the cause",
    ),
    cause(
        r"mlock.*(?:failed|cannot)|failed to mlock",
        "mlock_refused",
        "the host does not allow so much locked memory",
        "set mlock to false, or raise the node's memlock limit",
    ),
    cause(
        r"error loading model: (?P<why>.+)|failed to load model",
        "bad_file",
        "llama.cpp cannot load the file: {why}",
        "check the file with another tool, or copy it again",
    ),
)
