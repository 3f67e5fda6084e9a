METHODS = ['gptaq', 'gptq']
PAPER = 'arXiv:2504.02692'
CLAIM = 'At 3 bits a row, making good what earlier layers have changed (gptaq) loses less than gptq.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    three = ('--bits', 3, '--group', 0)
    gptq, gptaq = lab.quantized('gptq', *three), lab.quantized('gptaq', *three)
    beside = lab.lost(gptaq, less=gptq)
    base = lab.model('lm/base')
    return beside[0] + beside[1] < 0, {'nats lost, gptq': lab.lost(gptq), 'gptaq less gptq': beside, 'divergence, gptq': lab.divergence(gptq, base),
                                       'gptaq': lab.divergence(gptaq, base)}
