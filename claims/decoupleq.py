METHODS = ['decoupleq']
PAPER = 'arXiv:2404.12759'
CLAIM = 'At 2 bits with one scale and one offset a row, the perplexity that codes and scales found by turns (decoupleq) leave is at most a third of GPTQ\'s.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    two = ('--bits', 2, '--group', 0)
    gptq, turns = lab.quantized('gptq', *two), lab.quantized('decoupleq', *two)
    difference = lab.lost(turns, less=gptq)
    return difference[0] + difference[1] < -1.0986, {'nats lost, gptq': lab.lost(gptq), 'decoupleq': lab.lost(turns), 'difference': difference}
