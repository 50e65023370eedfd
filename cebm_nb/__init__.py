"""Conjugate energy-based models, derived and built cell by cell in notebooks. Names are loaded when they are first used."""
__version__ = "0.1.0"

from importlib import import_module as _import_module

_names = {
    'runs': 'train resume load_run Run',
    'zoo': 'create_model load_model read_card pretrained_names',
    'data': 'load_data ImageData ImageSet',
    'models': 'CEBM IGEBM EnergyModel Encodes',
    'vae': 'VAE',
    'bigan': 'BiGAN',
    'guided': 'GuidedCEBM',
    'conjugacy': 'Prior MixturePrior',
    'sgld': 'SGLD GibbsLangevin ReplayBuffer',
    'likelihood': 'bracket log_partition',
    'fast': 'FrozenEnergy',
    'evaluation': 'evaluate',
    'estimators': 'CEBMTransformer CEBMClusterer CEBMOutlierDetector',
    'hub': 'HubModel',
    'watch': 'Panel explore',
    'samples': 'sample_images',
    'settings': 'MODELS FAMILIES ENCODERS SAMPLERS DATA_SETS ModelKind UserError get_settings',
}
_modules = ('families conjugacy models settings sgld trainer toys likelihood data encoders vae bigan guided plots '
            'representation detection samples conditional evaluation report storage zoo runs fast processes bench workers '
            'sweep estimators hub watch cli').split()
_where = {name: module for module, names in _names.items() for name in names.split()}
__all__ = [*(name for name in _where if name != 'HubModel'), 'families', '__version__']  # that one needs an extra


def __getattr__(name):
    if name in _where: return getattr(_import_module(f'{__name__}.{_where[name]}'), name)
    if name in _modules: return _import_module(f'{__name__}.{name}')
    raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__(): return sorted({*globals(), *_where, *_modules} - {'_import_module'})
