METHODS = ['measure intruders', 'measure difference']
PAPER = 'arXiv:2410.21228'
CLAIM = 'A LoRA fine-tune has at least ten times the intruder dimensions of a full one on the same text, and its change has no more than its rank.'
NEEDS = ['lm/base', 'lm/python', 'lm/lora-python']


def measure(lab):
    base = lab.model('lm/base')
    numbers = {}
    for name, model in (('full', lab.model('lm/python')), ('LoRA', base + '+' + lab.model('lm/lora-python'))):
        pair = lab.measured([model], 'difference,intruders', '--base', base)['comparisons'][0]
        numbers[f'intruders, {name}'] = pair['total']['intruders.count_left.0.5']
        ranks = [t['values']['difference.energy_rank.0.9'] for t in pair['tensors'] if t['block'] is not None and t['values'].get('difference.energy_rank.0.9')]
        numbers[f'rank of 90 % of the change, {name}'] = max(ranks)
    return numbers['intruders, LoRA'] >= 10 * max(1, numbers['intruders, full']) and numbers['rank of 90 % of the change, LoRA'] <= 8, numbers
