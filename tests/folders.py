"What tests write into folders, and how they compare them."
import json


def read_rows(path):
    "Return the objects of a .jsonl file."
    return [json.loads(line) for line in path.read_text(encoding='utf-8').splitlines()]


def write_rows(path, rows):
    "Write objects as a .jsonl file and return its path."
    path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
    return path


def contents(folder):
    "Return the bytes of each file below a folder, by its path."
    return {file: file.read_bytes() for file in sorted(folder.rglob('*')) if file.is_file()}


def write_times(folder):
    "Return when each file and folder below a folder was written."
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob('*'))}
