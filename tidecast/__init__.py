"""Forecasts for streams of sensor readings.

`tidecast.service` is the Kafka worker, `tidecast.training` the trainer. In the repository both are links to the folders
of that name next to this one, so that an installed tidecast puts one name into an environment, not three.
"""

__version__ = "0.1.0"
