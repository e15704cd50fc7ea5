"""The order of all tests."""

# Files of a minute or more: begun last, one of them would go on alone while the other processes have no more to do.
LONG = (
    "test_security.py",
    "test_worker.py",
    "test_short_storm.py",
    "test_readme.py",
    "test_refused_restore.py",
    "test_restore.py",
    "test_long_run.py",
    "test_dashboards.py",
    "test_demo.py",
    "test_embedded_broker.py",
    "test_taxi.py",
    "test_make.py",
)
NO_KAFKA = {"unit", "docs", "training", "deploy"}


def pytest_collection_modifyitems(items):
    """What needs no Kafka stays first, as it lies; then the long files; then the others."""

    def turn(item):
        if NO_KAFKA.intersection(item.path.relative_to(item.config.rootpath).parts):
            return 0
        return 1 if item.path.name in LONG else 2

    items.sort(key=turn)
