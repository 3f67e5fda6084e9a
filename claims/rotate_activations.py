METHODS = ['rotate+gptq', 'eval --activations']
PAPER = 'arXiv:2404.00456'
CLAIM = 'With weights a row and activations a token of 4 bits, GPTQ on the rotated model loses at most half of what GPTQ loses on the model as it is.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    four, rounding = ('--bits', 4, '--group', 0), ('--activations', 'int4', '--activation-clip', 0.9)
    plain, rotated = lab.quantized('gptq', *four), lab.quantized('rotate+gptq', *four)
    half = lab.lost(rotated, of=0.5, less=plain, rounding=rounding)
    return half[0] + half[1] < 0, {
        'nats lost, gptq': lab.lost(plain, rounding=rounding), 'rotate+gptq': lab.lost(rotated, rounding=rounding),
        'rotated less plain': lab.lost(rotated, less=plain, rounding=rounding), 'less half of plain': half,
        'activations as they are, gptq': lab.lost(plain), 'rotate+gptq, as they are': lab.lost(rotated)}
