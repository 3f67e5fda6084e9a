METHODS = ['gptq+dac']
PAPER = 'arXiv:2602.02546'
CLAIM = 'At 2 bits in groups of 64, biases that put shifted means back (dac) take more than a few per cent off what GPTQ costs.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    numbers = {}
    for method in ('gptq', 'gptq+dac'):
        report = lab.run('quantize', lab.model('lm/base'), lab.place(), '--format', 'gptq_v2', '--bits', 2, '--group', 64, '--method', method,
                         '--calibration', lab.zoo / 'text/calibration.txt', '--eval', lab.text('english'), '--eval-window', 256, '--eval-windows',
                         lab.windows)['details']['eval'][0]
        numbers[f'rise of loss, {method}'] = report['delta_nll']
        numbers[f'KL, {method}'] = report['kl_mean']
    return numbers['rise of loss, gptq+dac'] < 0.97 * numbers['rise of loss, gptq'], numbers
