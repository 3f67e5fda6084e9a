METHODS = ['smooth', 'rtn']
PAPER = 'arXiv:2211.10438'
CLAIM = 'On a model without outliers, smoothing before 4-bit rounding in groups of 128 changes what is lost by less than half of it.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    rounded, made = lab.quantized('rtn', '--bits', 4, calibration=None), lab.quantized('smooth', '--bits', 4)
    beside, before = lab.lost(made, less=rounded), lab.lost(rounded)
    return abs(beside[0]) < 0.5 * before[0], {'nats lost, rtn': before, 'smooth less rtn': beside}
