METHODS = ['regmean', 'regmean_plusplus']
PAPER = 'arXiv:2212.09849, arXiv:2508.03121'
CLAIM = 'RegMean of three fine-tunes has a lower mean loss than their mean, and RegMean++ is no more than 1 % above RegMean.'
NEEDS = ['lm/german', 'lm/french', 'lm/python', 'text/held', 'text/train']


def measure(lab):
    names = ['german', 'french', 'python']
    mean = lab.mean_loss(lab.merge('linear', [(lab.model('lm/' + n), {'weight': 1.0}) for n in names]), names)
    def regmean(method):
        return lab.mean_loss(lab.merge_config({'merge_method': method, 'parameters': {'samples': 64},
                                               'models': [{'model': lab.model('lm/' + n), 'text': str(lab.training_text(n))} for n in names]}), names)
    plain, plusplus = regmean('regmean'), regmean('regmean_plusplus')
    return plain < mean and plusplus <= 1.01 * plain, {'mean loss, mean': mean, 'RegMean': plain, 'RegMean++': plusplus}
