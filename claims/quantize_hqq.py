METHODS = ['hqq', 'rtn']
PAPER = 'github.com/mobiusml/hqq'
CLAIM = 'At 3 bits in groups of 64, half-quadratic zero points take 10 to 35 % off what rounding loses, without any text.'
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    three = ('--bits', 3, '--group', 64)
    rounded, made = lab.quantized('rtn', *three, calibration=None), lab.quantized('hqq', *three, calibration=None)
    most, least = lab.lost(made, of=0.9, less=rounded), lab.lost(made, of=0.65, less=rounded)
    holds = most[0] + most[1] < 0 and least[0] + least[1] > 0
    return holds, {'nats lost, rtn': lab.lost(rounded), 'hqq': lab.lost(made), 'hqq less 0.9 of rtn': most, 'less 0.65 of rtn': least}
