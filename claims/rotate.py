METHODS = ['rotate+gptq', 'gptq']
PAPER = 'arXiv:2404.00456'
CLAIM = 'At 3 bits a row, GPTQ on the rotated model loses less than GPTQ on the model as it is, beyond the interval of the paired difference.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    three = ('--bits', 3, '--group', 0)
    plain, rotated = lab.quantized('gptq', *three), lab.quantized('rotate+gptq', *three)
    beside, base = lab.lost(rotated, less=plain), lab.model('lm/base')
    return beside[0] + beside[1] < 0, {'nats lost, gptq': lab.lost(plain), 'rotate+gptq': lab.lost(rotated), 'rotated less plain': beside,
                                       'divergence, gptq': lab.divergence(plain, base), 'rotated': lab.divergence(rotated, base)}
