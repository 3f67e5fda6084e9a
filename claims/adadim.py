METHODS = ['adadim+rtn', 'adadim+gptq']
PAPER = 'arXiv:2309.15531'
CLAIM = 'At 3 bits in groups of 128, choosing for each layer whether groups lie along inputs or outputs costs at least 5 % less loss than rounding along inputs.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    base, text = lab.model('lm/base'), lab.text('english')
    numbers = {}
    for method in ('rtn', 'adadim+rtn', 'gptq', 'adadim+gptq'):
        out = lab.place()
        report = lab.run('quantize', base, out, '--format', 'weft', '--bits', 3, '--group', 128, '--method', method, '--calibration',
                         lab.zoo / 'text/calibration.txt', '--eval', text, '--eval-window', 256, '--eval-windows', lab.windows)['details']
        numbers[f'rise of loss, {method}'] = report['eval'][0]['delta_nll']
        if method == 'adadim+rtn':
            numbers['layers by output'] = sum(layer['method'].endswith('by output') for layer in report['layers'])
            numbers['layers'] = len(report['layers'])
    return numbers['rise of loss, adadim+rtn'] < 0.95 * numbers['rise of loss, rtn'], numbers
