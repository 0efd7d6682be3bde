"Models in files whose weights are no numbers, as a damaged or diverged run leaves them."
from safetensors.torch import load_file, save_file


def break_weight(folder, name, value):
    "Write a value that is no number into a weight of a model's folder; `save_pretrained` would refuse to."
    file = folder/'model.safetensors'
    tensors = load_file(file)
    tensors[name].view(-1)[0] = value
    save_file(tensors, file, metadata=dict(format='pt'))
