METHODS = ['rtn', 'loss', 'model', 'lim']
PAPER = 'arXiv:2006.10518'
CLAIM = 'At 3 bits a weight on average, widths of 2, 3 and 4 bits by what the whole model loses with each layer beat 3 bits everywhere and whole blocks by LIM.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    options = ('--group', 64, '--symmetric')
    uniform = lab.quantized('rtn', '--bits', 3, *options, calibration=None)
    made = {by: lab.quantized('rtn', *options, '--budget', '3.25bpw', '--budget-by', by, '--widths', '2,3,4' if by in ('loss', 'model') else '2,4')
            for by in ('model', 'loss', 'lim')}
    numbers = {'nats lost, 3 bits': lab.lost(uniform)}
    numbers |= {by: lab.lost(own) for by, own in made.items()}
    numbers |= {'model less 3 bits': lab.lost(made['model'], less=uniform), 'model less lim': lab.lost(made['model'], less=made['lim']),
                'model less loss': lab.lost(made['model'], less=made['loss'])}
    return all(sum(numbers[f'model less {other}']) < 0 for other in ('3 bits', 'lim')), numbers
