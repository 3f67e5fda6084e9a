METHODS = ['rtn', 'awq', 'gptq']
PAPER = 'arXiv:2308.13137'
CLAIM = 'At 2 bits in groups of 64 rounding collapses, awq alone collapses with it, and gptq loses less than half of either.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    two = ('--bits', 2, '--group', 64)
    rounded, awq, gptq = lab.quantized('rtn', *two, calibration=None), lab.quantized('awq', *two), lab.quantized('gptq', *two)
    halves = lab.lost(gptq, of=0.5, less=rounded), lab.lost(gptq, of=0.5, less=awq)
    lost = {'nats lost, rtn': lab.lost(rounded), 'awq': lab.lost(awq), 'gptq': lab.lost(gptq)}
    holds = lost['nats lost, rtn'][0] > 0.4 and lost['awq'][0] > 0.4 and all(h[0] + h[1] < 0 for h in halves)
    return holds, {**lost, 'gptq less half of rtn': halves[0], 'gptq less half of awq': halves[1]}
