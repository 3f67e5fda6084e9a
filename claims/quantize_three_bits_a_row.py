METHODS = ['gptq', 'rtn']
PAPER = 'arXiv:2210.17323'
CLAIM = 'At 3 bits a row gptq loses at most half of what rounding loses.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    three = ('--bits', 3, '--group', 0)
    rounded, made = lab.quantized('rtn', *three, calibration=None), lab.quantized('gptq', *three)
    half = lab.lost(made, of=0.5, less=rounded)
    return half[0] + half[1] < 0, {'nats lost, rtn': lab.lost(rounded), 'gptq': lab.lost(made), 'gptq less half of rtn': half}
