METHODS = ['gptq']
PAPER = 'arXiv:2210.17323'
CLAIM = 'At 3 bits gptq calibrated on the domain that it is measured on loses less there than calibrated on another.'
NEEDS = ['lm/base', 'text/held', 'text/train']


def measure(lab):
    made = {name: lab.quantized('gptq', '--bits', 3, calibration=f'text/train/{name}.txt') for name in ('english', 'german')}
    numbers = {f'{text}: own less other calibration': lab.lost(made[text], text, less=made[other])
               for text, other in (('english', 'german'), ('german', 'english'))}
    return all(mean + half < 0 for mean, half in numbers.values()), numbers
