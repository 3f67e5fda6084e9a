METHODS = ['smoothplus+rtn']
PAPER = 'arXiv:2312.03788'
CLAIM = 'One exponent of smoothing for the whole model leaves at most as much loss at 4 bits in groups of 128 as rounding does.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    base, text = lab.model('lm/base'), lab.text('english')
    numbers = {}
    for method in ('rtn', 'smoothplus+rtn'):
        report = lab.run('quantize', base, lab.place(), '--format', 'gptq_v2', '--bits', 4, '--group', 128, '--method', method, '--eval', text,
                         '--eval-window', 256, '--eval-windows', lab.windows,
                         *(['--calibration', lab.zoo / 'text/calibration.txt'] if method != 'rtn' else []))
        numbers[f'rise of loss, {method}'] = report['details']['eval'][0]['delta_nll']
    return numbers['rise of loss, smoothplus+rtn'] <= numbers['rise of loss, rtn'], numbers
