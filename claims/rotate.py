METHODS = ['rotate+gptq', 'rotate+rtn']
PAPER = 'arXiv:2404.00456'
CLAIM = 'At 3 bits a row, GPTQ on the rotated model loses less than GPTQ on the model as it is, beyond the interval of the paired difference.'
NEEDS = ['lm/base', 'text/held', 'text/calibration.txt']


def measure(lab):
    base, text = lab.model('lm/base'), lab.text('english')
    numbers, models = {}, {}
    for method in ('gptq', 'rotate+gptq'):
        models[method] = lab.place()
        report = lab.run('quantize', base, models[method], '--format', 'gptq', '--bits', 3, '--group', 0, '--method', method, '--calibration',
                         lab.zoo / 'text/calibration.txt', '--eval', text, '--eval-window', 256, '--eval-windows', lab.windows)['details']
        numbers[f'rise of loss, {method}'] = report['eval'][0]['delta_nll']
        numbers[f'KL, {method}'] = report['eval'][0]['kl_mean']
    paired = lab.run('eval', models['rotate+gptq'], '--text', text, '--window', 256, '--windows', lab.windows, '--against', models['gptq'])['texts'][0]
    numbers['rotated less plain'], numbers['its upper end (95 %)'] = paired['delta_nll'], paired['delta_ci95'][1]
    return paired['delta_ci95'][1] < 0, numbers
