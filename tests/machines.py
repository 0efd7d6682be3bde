"A machine with round numbers, so that no test depends on the one it runs on."

BY_HAND = dict(device='by hand', type='cpu', cores=2, memory=16e9, peak_flops=330e9, peak_source='measured',
               dtype='float32', efficiency=.5, efficiency_at=[[64, .3], [256, .5]])
