"""The peers of `benchmarks/starter.py`; it runs this file in their own environment: starter_peers.py JOB OUT PEER.

JOB is an .npz: `values` [series, steps] (NaN before a series begins), `starts` [blocks] (the first origin of each),
`every` (origins of a block), `horizon`, `seasons`, `window` (steps that a model of statsforecast is fitted on), `long`
(LightGBM's), `step_ms`, `start_ms`. OUT is an .npz: `forecast` [series, blocks * every, horizon], `seconds` of a
forecast of a series, `bytes` of a series' state.

- Refitted: fitted on the window up to a block's first origin, and again at the next block's. At each origin of a block
  the fitted model is moved forward over the values up to it, without new parameters. Seconds are those of the fit and
  of moving forward, over the origins of the block.
- Online: reading by reading from the first row on. Seconds are those of all readings, learning and forecast, over all
  rows: one forecast a reading.

Each runs on one core. The constants of river's models and LightGBM's differences are the best of a handful on ETTh1's
rows before 11,520; none was chosen on another set.
"""

from __future__ import annotations

import pickle
import sys
import time
import warnings
from collections.abc import Callable
from datetime import datetime
from typing import Any

import numpy as np

Made = tuple[Any, float, float]  # forecast, seconds a forecast, bytes a series


def refitted(make: Callable[[list[int]], Any]) -> Callable[[Any], Made]:
    def run(job: Any) -> Made:
        values, horizon, seasons = job["values"], int(job["horizon"]), job["seasons"].tolist()
        every, window = int(job["every"]), int(job["window"])
        seasons = [season for season in seasons if 2 * season <= window] or [1]
        series, blocks = len(values), len(job["starts"])
        out = np.empty((series, blocks, every, horizon))
        took, state = 0.0, 0.0
        warm = make(seasons)
        warm.fit(known(values[0], int(job["starts"][0]), window))  # compiles
        warm.forward(y=known(values[0], int(job["starts"][0]), window), h=horizon)
        for k in range(series):
            for b, start in enumerate(job["starts"].tolist()):
                began = time.process_time()
                model = make(seasons)
                model.fit(known(values[k], start, window))
                for i in range(every):
                    y = known(values[k], start + i, window + i)  # from the fit's first step: its states begin there
                    out[k, b, i] = (model.forward(y=y, h=horizon) if i else model.predict(h=horizon))["mean"]
                took += time.process_time() - began
                state += 8 * len(y) + len(pickle.dumps(model))
        n = series * blocks
        return out.reshape(series, blocks * every, horizon), took / n / every, state / n

    return run


def known(values: Any, origin: int, window: int) -> Any:
    """The newest values up to the origin, that included."""
    y = values[max(0, origin + 1 - window) : origin + 1]
    return np.ascontiguousarray(y[np.isfinite(y)])


def ets(seasons: list[int]) -> Any:
    from statsforecast.models import AutoETS

    return AutoETS(season_length=shortest(seasons, 24))  # it has no seasons longer than 24


def arima(seasons: list[int]) -> Any:
    from statsforecast.models import AutoARIMA

    return AutoARIMA(season_length=shortest(seasons, 48), approximation=True)  # longer ones take minutes a fit


def mstl(seasons: list[int]) -> Any:
    from statsforecast.models import MSTL

    return MSTL(season_length=sorted(seasons))


def shortest(seasons: list[int], most: int) -> int:
    return min(seasons) if min(seasons) <= most else 1


def lightgbm(job: Any) -> Made:
    """One model for all series, refitted likewise on the `long` window; its forecasts are fed back for later steps."""
    import lightgbm as lgb
    import pandas as pd
    from mlforecast import MLForecast
    from mlforecast.lag_transforms import ExponentiallyWeightedMean, RollingMean
    from mlforecast.target_transforms import Differences, LocalStandardScaler

    values, horizon, long = job["values"], int(job["horizon"]), int(job["long"])
    every, day = int(job["every"]), min(job["seasons"].tolist())
    near = sorted({1, 2, 3, 4, 5, 6, *(lag for s in job["seasons"].tolist() for lag in (s - 1, s, s + 1))} - {0})
    longest = max(near) + 2 * day + 32  # steps that the newest features need
    series, blocks = len(values), len(job["starts"])
    out = np.empty((series, blocks, every, horizon))

    def frame(origin: int, window: int) -> Any:
        parts = []
        for k in range(series):
            y = known(values[k], origin, window)
            first = int(job["start_ms"]) + (origin + 1 - len(y)) * int(job["step_ms"])
            ds = pd.date_range(pd.Timestamp(first, unit="ms"), periods=len(y), freq=f"{int(job['step_ms'])}ms")
            parts.append(pd.DataFrame({"unique_id": k, "ds": ds, "y": y}))
        return pd.concat(parts)

    def fitted(origin: int) -> Any:
        model = MLForecast(
            [lgb.LGBMRegressor(n_estimators=200, num_leaves=31, learning_rate=0.05, n_jobs=1, verbosity=-1)],
            freq=f"{int(job['step_ms'])}ms",
            lags=near,
            lag_transforms={1: [RollingMean(window_size=max(day, 2)), ExponentiallyWeightedMean(alpha=0.1)]},
            date_features=["hour", "dayofweek"],
            target_transforms=[*([Differences([1])] if horizon == 1 else []), LocalStandardScaler()],
        )
        return model.fit(frame(origin, long))

    fitted(int(job["starts"][0]))
    took, size = 0.0, 0
    for b, start in enumerate(job["starts"].tolist()):
        began = time.process_time()
        model = fitted(start)
        for i in range(every):
            found = model.predict(h=horizon, new_df=frame(start + i, longest)) if i else model.predict(h=horizon)
            out[:, b, i] = found["LGBMRegressor"].to_numpy().reshape(series, horizon)
        took += time.process_time() - began
        size = len(pickle.dumps(model.models_))
    n = series * blocks * every
    return out.reshape(series, blocks * every, horizon), took / n, 8 * long + size / series


def online(make: Callable[[list[int], int], Any]) -> Callable[[Any], Made]:
    def run(job: Any) -> Made:
        values, horizon, seasons = job["values"], int(job["horizon"]), job["seasons"].tolist()
        origins = (job["starts"][:, None] + np.arange(int(job["every"]))).ravel()
        wanted = {o: i for i, o in enumerate(origins.tolist())}
        out = np.empty((len(values), len(origins), horizon))
        learning, asking, size, rows = 0.0, 0.0, 0, 0
        for k, y in enumerate(values):
            model = make(seasons, horizon)
            for t in range(int(np.flatnonzero(np.isfinite(y))[0]), int(origins[-1]) + 1):
                began = time.process_time()
                model.learn_one(float(y[t]))
                learning += time.process_time() - began
                rows += 1
                if t in wanted:
                    began = time.process_time()
                    out[k, wanted[t]] = model.forecast(horizon=horizon)
                    asking += time.process_time() - began
            size += len(pickle.dumps(model))
        return out, learning / rows + asking / out.shape[0] / out.shape[1], size / len(values)

    return run


def snarimax(seasons: list[int], horizon: int) -> Any:
    from river.linear_model import LinearRegression
    from river.optim import SGD
    from river.preprocessing import StandardScaler
    from river.time_series import SNARIMAX

    regressor = StandardScaler() | LinearRegression(optimizer=SGD(0.001), intercept_lr=0.001)
    if horizon == 1:
        return SNARIMAX(p=3, d=1, q=0, m=min(seasons), sp=2, regressor=regressor)
    return SNARIMAX(p=2, d=0, q=0, m=min(seasons), sp=1, sd=1, regressor=regressor)


def holt_winters(seasons: list[int], horizon: int) -> Any:
    from river.time_series import HoltWinters

    alpha, beta, gamma = (0.5, 0.01, 0.1) if horizon == 1 else (0.1, 0.001, 0.1)
    return HoltWinters(alpha=alpha, beta=beta, gamma=gamma, seasonality=min(seasons))


PEERS = {
    "AutoETS": refitted(ets),
    "AutoARIMA": refitted(arima),
    "MSTL": refitted(mstl),
    "LightGBM": lightgbm,
    "SNARIMAX": online(snarimax),
    "HoltWinters": online(holt_winters),
}


def main() -> None:
    job_file, out_file, peer = sys.argv[1:]
    warnings.filterwarnings("ignore")  # convergence, constant input
    with np.load(job_file) as file:
        job = dict(file)
    began = datetime.now()
    forecast, seconds, size = PEERS[peer](job)
    np.savez(out_file, forecast=forecast, seconds=seconds, bytes=size)
    print(f"{peer}: {seconds * 1e3:.3g} ms a forecast, {datetime.now() - began}", file=sys.stderr)


if __name__ == "__main__":
    main()
