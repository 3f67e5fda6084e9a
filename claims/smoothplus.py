METHODS = ['smoothplus+rtn']
PAPER = 'arXiv:2312.03788'
CLAIM = ('One exponent of smoothing for the whole model loses no more at 4 bits in groups of 128 than rounding does, and with outlying channels less than '
         'half.')
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    numbers, holds = {}, True
    for name, model, of in (('as it is', 'lm/base', 1.0), ('outliers', lab.loud('lm/base', 256), 0.5)):
        rounded = lab.quantized('rtn', '--bits', 4, '--group', 128, model=model, calibration=None)
        made = lab.quantized('smoothplus+rtn', '--bits', 4, '--group', 128, model=model)
        numbers[f'nats lost, {name}, rtn'], numbers[f'{name}, smoothplus+rtn'] = lab.lost(rounded), lab.lost(made)
        beside = lab.lost(made, of=of, less=rounded)
        numbers[f'{name}, less {of:g} of rtn'] = beside
        holds = holds and (beside[0] - beside[1] <= 0 if of == 1 else beside[0] + beside[1] < 0)
    return holds, numbers
