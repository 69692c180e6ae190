"""`python -m tests.contract.write_schemas`: keep the schemas of all messages as they are now.

Run it after an additive change. It refuses to write over a schema that readers of the kept one would not
understand: such a change is a new class with a new type beside the old one. Before the first release, and
only then, `--force` writes anyway.
"""

import json
import sys

from tests.contract.additive import breaks
from tests.contract.messages import SCHEMAS, messages, reader_schema_of, text_of


def main() -> int:
    """Write the files; 1 if a change is not additive."""
    force = "--force" in sys.argv[1:]
    SCHEMAS.mkdir(exist_ok=True)
    status = 0
    for name, kind in messages().items():
        path = SCHEMAS / f"{name}.json"
        schema = reader_schema_of(kind)
        found = breaks(json.loads(path.read_text()), schema) if path.exists() else []
        if found and not force:
            status = 1
            print(f"{name} is not written:", *found, sep="\n  ")
            continue
        path.write_text(text_of(schema))
    return status


if __name__ == "__main__":
    sys.exit(main())
