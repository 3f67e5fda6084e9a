METHODS = ['rtn', 'gptq', 'awq', 'hqq', 'gptaq']
PAPER = 'arXiv:2308.13137'
CLAIM = 'At 4 bits in groups of 128 every calibrated method is within 3 % of the original, and none loses more than plain rounding.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    rounded = lab.quantized('rtn', '--bits', 4, calibration=None)
    numbers, holds = {'nats lost, rtn': lab.lost(rounded)}, True
    for method in ('gptq', 'gptaq', 'awq', 'hqq'):
        made = lab.quantized(method, '--bits', 4)
        own, beside = lab.lost(made), lab.lost(made, less=rounded)
        numbers[f'{method} less rtn'] = beside
        holds = holds and own[0] < 0.03 and beside[0] - beside[1] <= 0
    return holds, numbers
