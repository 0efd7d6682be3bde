"""Call commands as a shell does, all in one process: `commands.py '[[NAME, [ARGUMENT, ...]], ...]'`.

Prints a JSON list of what each one ended with."""
import contextlib, io, json, sys
from fastcore.script import _run_cli
from llmbook import cli


def ended_with(name, args):
    sys.argv = [name, *args]
    with contextlib.redirect_stdout(io.StringIO()):
        try: _run_cli(getattr(cli, name).__wrapped__, False)
        except SystemExit as e: return str(e)
        except BaseException as e: return f'{type(e).__name__}: {e}'
    return 'accepted'


calls = json.loads(sys.argv[1])
print(json.dumps([ended_with(name, args) for name, args in calls]))
