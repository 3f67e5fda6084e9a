METHODS = ['measure cka']
PAPER = 'Kornblith et al. 2019'
CLAIM = "A fine-tune's hidden states are like its base's, the less so the deeper: similarity falls from the embedding to the final norm."
NEEDS = ['lm/base', 'lm/german', 'text/held']


def measure(lab):
    total = lab.measured([lab.model('lm/german')], 'cka', '--base', lab.model('lm/base'), '--text', str(lab.text('english')))['comparisons'][0]['total']
    places = []
    while f'cka.plain.{len(places)}' in total:
        places.append(total[f'cka.plain.{len(places)}'])
    return places[0] > 0.99 and places[-1] == min(places), {'embedding': places[0], 'middle': places[len(places) // 2], 'final norm': places[-1]}
