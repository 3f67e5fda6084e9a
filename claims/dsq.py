METHODS = ['dsq+rtn', 'dsq+gptq']
PAPER = 'arXiv:2602.02546'
CLAIM = 'At 3 bits in groups of 128 a second scale of down (dsq) takes 5 % or more off the relative loss of rounding it.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    numbers = {}
    for method in ('rtn', 'dsq+rtn', 'gptq', 'dsq+gptq'):
        report = lab.run('quantize', lab.model('lm/base'), lab.place(), '--format', 'gptq_v2', '--bits', 3, '--group', 128, '--method', method,
                         '--calibration', lab.zoo / 'text/calibration.txt', '--eval', lab.text('english'), '--eval-window', 256, '--eval-windows',
                         lab.windows)['details']
        lost = [layer['relative_loss'] for layer in report['layers'] if layer['name'].endswith('down_proj.weight')]
        numbers[f'relative loss of down, {method}'] = sum(lost) / len(lost)
        numbers[f'rise of loss, {method}'] = report['eval'][0]['delta_nll']
    return numbers['relative loss of down, dsq+rtn'] < 0.95 * numbers['relative loss of down, rtn'], numbers
