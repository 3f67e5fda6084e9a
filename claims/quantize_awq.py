METHODS = ['awq', 'gptq', 'rtn']
PAPER = 'arXiv:2306.00978'
CLAIM = ('At 3 bits in groups of 64, awq takes 15 to 50 % off what rounding loses, and calibrated on English it loses less of its gain on German than gptq does.')
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    three = ('--bits', 3, '--group', 64)
    rounded = lab.quantized('rtn', *three, calibration=None)
    awq, gptq = lab.quantized('awq', *three), lab.quantized('gptq', *three)
    most, least = lab.lost(awq, of=0.85, less=rounded), lab.lost(awq, of=0.5, less=rounded)
    foreign = lab.lost(awq, 'german', less=gptq)
    holds = most[0] + most[1] < 0 and least[0] + least[1] > 0 and foreign[0] + foreign[1] < 0
    return holds, {'nats lost, rtn': lab.lost(rounded), 'awq': lab.lost(awq), 'gptq': lab.lost(gptq), 'awq less 0.85 of rtn': most, 'less half of rtn': least,
                   'german, rtn': lab.lost(rounded, 'german'), 'german, awq less gptq': foreign}
