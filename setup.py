"""What pyproject.toml cannot say: files of data are installed with a checkout, too (`pip install -e`)."""

from setuptools import Distribution, setup


class _Distribution(Distribution):
    has_data = Distribution.has_data_files  # the name by which setuptools asks for an editable wheel


setup(distclass=_Distribution)
