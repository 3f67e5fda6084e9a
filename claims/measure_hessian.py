METHODS = ['measure hessian', 'measure landscape']
PAPER = 'github.com/GabdullinN/loss-landscape-analysis'
CLAIM = "On text that a model was not trained on, the share of negative curvature is larger, and the loss curves more than ten times as much along the Hessian's first direction as along random ones."
NEEDS = ['lm/tiny-base', 'text/held']


def measure(lab):
    look = 'tokens=512,steps=20,samples=0,points=11,plane=no'
    numbers, steep = {}, True
    for text in ('english', 'german'):
        model = lab.measured([lab.model('lm/tiny-base')], 'hessian,landscape', '--text', str(lab.text(text)), '--curvature', look)['models'][0]['model']
        numbers[f're, {text}'], numbers[f'Kh, {text}'], numbers[f'largest eigenvalue, {text}'] = model['hessian.re'], model['hessian.kh'], model['hessian.largest']
        along = {axis: model[f'landscape.line.{axis}.curvature'] / model[f'landscape.line.{axis}.length'] ** 2 for axis in ('hessian_0', 'random_0', 'random_1')}
        numbers[f'curvature along random directions, {text}'] = max(along['random_0'], along['random_1'])
        steep = steep and along['hessian_0'] > 10 * numbers[f'curvature along random directions, {text}']
    return steep and numbers['re, german'] > numbers['re, english'] and numbers['Kh, german'] > numbers['Kh, english'], numbers
