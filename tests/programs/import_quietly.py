"""Import modules one by one, without a network: `import_quietly.py MODULES HEAVY`, two JSON lists of names.

Prints as JSON which modules brought in a heavy library or a CUDA context: {module: [what]}."""
import importlib, json, socket, sys


def refuse(*args, **kwargs): raise RuntimeError('a module uses the network while it is imported')


def present(heavy):
    found = {name for name in heavy if name in sys.modules}
    if 'matplotlib' in sys.modules and 'fastai' not in sys.modules: found.add('matplotlib')
    if 'torch' in sys.modules and sys.modules['torch'].cuda.is_initialized(): found.add('a CUDA context')
    return found


socket.socket.connect = refuse
socket.socket.connect_ex = refuse
socket.getaddrinfo = refuse
modules, heavy = map(json.loads, sys.argv[1:])
res, seen = {}, set()
for name in modules:
    importlib.import_module(name)
    new = present(heavy) - seen
    if new: res[name] = sorted(new)
    seen |= new
print(json.dumps(res))
