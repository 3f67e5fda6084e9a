METHODS = ['rotate+rsq+gptq', 'rotate+gptq']
PAPER = 'arXiv:2503.01820'
CLAIM = 'At 3 bits a row, tokens that count by the attention that they receive (rsq) diverge less from the original than those that count alike (rotated GPTQ).'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    base, text = lab.model('lm/base'), lab.text('english')
    numbers = {}
    for name, options in (('alike', ['--method', 'rotate+gptq']), ('by attention', ['--method', 'rotate+rsq+gptq']),
                          ('the first eighth', ['--method', 'rotate+rsq+gptq', '--set', 'rsq.first=1'])):
        out = lab.place()
        report = lab.run('quantize', base, out, '--format', 'gptq', '--bits', 3, '--group', 0, '--calibration', lab.zoo / 'text/calibration.txt',
                         '--eval', text, '--eval-window', 256, '--eval-windows', lab.windows, *options)
        numbers[f'KL, {name}'] = report['details']['eval'][0]['kl_mean']
        numbers[f'rise of loss, {name}'] = report['details']['eval'][0]['delta_nll']
    return numbers['KL, by attention'] < numbers['KL, alike'], numbers
