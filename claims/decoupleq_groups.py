METHODS = ['decoupleq']
PAPER = 'arXiv:2404.12759'
CLAIM = 'At 2 bits in groups of 128, codes and scales found by turns lose at most three quarters of what GPTQ loses, on the text\'s own language and on others.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    two = ('--bits', 2, '--group', 128)
    gptq, turns = lab.quantized('gptq', *two), lab.quantized('decoupleq', *two)
    numbers = {f'{text}, decoupleq less three quarters of gptq': lab.lost(turns, text, of=0.75, less=gptq) for text in ('english', 'german', 'python')}
    numbers['nats lost on english, gptq'], numbers['decoupleq'] = lab.lost(gptq), lab.lost(turns)
    return all(n[0] + n[1] < 0 for name, n in numbers.items() if 'quarters' in name), numbers
