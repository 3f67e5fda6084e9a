METHODS = ['rotate+gptq', 'rotate+rtn', 'eval --activations']
PAPER = 'arXiv:2404.00456'
CLAIM = 'With four outlying channels behind each norm, rotating takes at least nine tenths off what weights a row and activations a token of 4 bits lose.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    loud = lab.loud('lm/base', 256)
    four, rounding = ('--bits', 4, '--group', 0), ('--activations', 'int4', '--activation-clip', 0.9)
    numbers, holds = {}, True
    for codes in ('rtn', 'gptq'):
        plain, rotated = lab.quantized(codes, *four, model=loud), lab.quantized(f'rotate+{codes}', *four, model=loud)
        numbers[f'nats lost, {codes}'], numbers[f'rotate+{codes}'] = lab.lost(plain, rounding=rounding), lab.lost(rotated, rounding=rounding)
        tenth = lab.lost(rotated, of=0.1, less=plain, rounding=rounding)
        numbers[f'rotate+{codes} less a tenth of {codes}'] = tenth
        holds = holds and tenth[0] + tenth[1] < 0
    return holds, numbers
