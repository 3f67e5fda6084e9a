METHODS = ['rtn']
PAPER = 'github.com/IST-DASLab/gptq'
CLAIM = ('Rounding to 8 bits a row loses less than 0.3 %, to 4 bits in groups of 64 at most 3 %, to 3 bits 5 to 20 %, and 2 bits more than half; searching the range '
         'takes at least a tenth off what 3 bits lose.')
NEEDS = ['lm/base', 'text/held']


def measure(lab):
    made = lambda bits, group, *more: lab.quantized('rtn', '--bits', bits, '--group', group, *more, calibration=None)
    eight, four, three, two = (lab.lost(made(b, g)) for b, g in ((8, 0), (4, 64), (3, 64), (2, 64)))
    searched = lab.lost(made(3, 64, '--search', 'shrink'), of=0.9, less=made(3, 64))
    holds = eight[0] + eight[1] < 0.003 and four[0] + four[1] < 0.03 and 0.05 < three[0] < 0.18 and two[0] > 0.4 and searched[0] + searched[1] < 0
    return holds, {'nats lost, 8 bits a row': eight, '4 bits': four, '3 bits': three, '2 bits': two, '3 bits searched, less 0.9 of not searched': searched}
