METHODS = ['super+rtn', 'rtn']
PAPER = 'arXiv:2411.07191'
CLAIM = 'At 4 bits a row, clipping at the one limit where the model loses least, with super weights kept, loses less than plain rounding.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    row = ('--bits', 4, '--group', 0)
    rounded = lab.quantized('rtn', *row, calibration=None)
    clipped, layers = lab.quantized('super+rtn', *row, '--set', 'super.clip=0'), lab.quantized('super+rtn', *row, '--set', 'super.clip=0', calibration=None)
    less = lab.lost(clipped, less=rounded)
    return less[0] + less[1] < 0, {'nats lost, rtn': lab.lost(rounded), 'super+rtn': lab.lost(clipped), 'less than rtn by': less,
                                   'super+rtn, limits by layer': lab.lost(layers)}
