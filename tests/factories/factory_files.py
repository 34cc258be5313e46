"""Files of rows in every format, and the message of a refusal."""

import csv
import gzip
import json

import pytest

from stagealign.base.errors import BadData

FORMATS = ("jsonl", "jsonl.gz", "json", "objects.json", "csv", "parquet")


def write(path, rows):
    """`rows` in the format of the path's ending."""
    name = path.name
    if name.endswith(".parquet"):
        import pyarrow as pa
        import pyarrow.parquet as pq

        pq.write_table(pa.Table.from_pylist(rows), path)
    elif name.endswith("objects.json"):
        path.write_text("\n".join(json.dumps(row, indent=1) for row in rows), encoding="utf-8")
    elif name.endswith(".json"):
        path.write_bytes(json.dumps(rows, indent=1, ensure_ascii=False).encode("utf-8", "surrogatepass"))
    elif name.endswith(".csv"):
        with open(path, "w", encoding="utf-8-sig", newline="") as file:
            table = csv.DictWriter(file, list(rows[0]))
            table.writeheader()
            for row in rows:
                table.writerow({key: json.dumps(v) if isinstance(v, list) else v for key, v in row.items()})
    else:
        text = "".join(json.dumps(row) + "\n" for row in rows)
        path.write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())
    return str(path)


def file(tmp_path, rows, ending="jsonl"):
    return write(tmp_path / f"data.{ending}", rows)


def refused(call, *words):
    """The one-line message of the BadData that `call` raises, which has all the words."""
    with pytest.raises(BadData) as caught:
        call()
    message = str(caught.value)
    assert "\n" not in message
    for word in words:
        assert word in message, f"{word!r} not in {message!r}"
    return message
