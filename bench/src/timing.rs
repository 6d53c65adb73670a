//! Many operations, some at once: their median, 95th and 99th percentile.

use std::time::{Duration, Instant};

use futures::StreamExt as _;

/// Prints the head of the table that [`timed`] fills.
pub(crate) fn head() {
    println!("{:<40} {:>5} {:>10} {:>10} {:>10}", "operation", "width", "median ms", "p95 ms", "p99 ms");
}

/// Prints median, 95th and 99th percentile, and returns the median.
pub(crate) fn show(name: &str, width: usize, mut times: Vec<Duration>) -> Duration {
    times.sort();
    let at = |percent: usize| times.get(times.len().saturating_sub(1) * percent / 100).copied();
    let [median, p95, p99] = [50, 95, 99].map(|percent| at(percent).unwrap_or_default());
    let ms = |d: Duration| d.as_secs_f64() * 1000.0;
    println!("{name:<40} {width:>5} {:>10.2} {:>10.2} {:>10.2}", ms(median), ms(p95), ms(p99));
    median
}

/// Prints the ratio of two medians.
pub(crate) fn ratio(name: &str, width: usize, ours: Duration, other: Duration) {
    println!("{name:<40} {width:>5} {:>10.2}", ours.as_secs_f64() / other.as_secs_f64());
}

/// Runs `count` operations, `width` at once; prints and returns the median.
pub(crate) async fn timed<F, Fut>(
    name: &str,
    width: usize,
    count: usize,
    operation: F,
) -> anyhow::Result<Duration>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    Ok(show(name, width, times(width, 0..count, operation).await?))
}

/// What each operation of `numbers` took, `width` at once.
pub(crate) async fn times<F, Fut>(
    width: usize,
    numbers: std::ops::Range<usize>,
    operation: F,
) -> anyhow::Result<Vec<Duration>>
where
    F: Fn(usize) -> Fut,
    Fut: Future<Output = anyhow::Result<()>>,
{
    futures::stream::iter(numbers)
        .map(|number| {
            let work = operation(number);
            async move {
                let started = Instant::now();
                work.await.map(|()| started.elapsed())
            }
        })
        .buffer_unordered(width)
        .collect::<Vec<_>>()
        .await
        .into_iter()
        .collect()
}
