//! Files: write, read, make directories.

use bytes::Bytes;
use futures::StreamExt as _;

use super::{Bench, Failure, Outcome, check, check_error};
use crate::{BodyStream, ProviderError, Run};

/// Content that does not compress and has every byte in it.
fn content(length: u32) -> Vec<u8> {
    (0..length).map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8).collect()
}

/// A tar with these files (POSIX ustar; names up to 100 bytes).
fn archive(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, content) in files {
        let mut header = [0_u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[100..107].copy_from_slice(b"0000640");
        header[108..115].copy_from_slice(b"0000000");
        header[116..123].copy_from_slice(b"0000000");
        header[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
        header[136..147].copy_from_slice(b"00000000000");
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].copy_from_slice(b"        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        archive.extend_from_slice(&header);
        archive.extend_from_slice(content);
        archive.resize(archive.len().next_multiple_of(512), 0);
    }
    archive.resize(archive.len() + 1024, 0);
    archive
}

fn body(bytes: Vec<u8>) -> BodyStream {
    let chunks: Vec<_> = bytes.chunks(50_000).map(|chunk| Ok(Bytes::copy_from_slice(chunk))).collect();
    Box::pin(futures::stream::iter(chunks))
}

async fn read(bench: &Bench, run: &Run, path: &str, cwd: Option<&str>) -> Result<Vec<u8>, ProviderError> {
    let mut chunks = bench.provider.read_file(&bench.run_ref(run), path, cwd).await?;
    let mut all = Vec::new();
    while let Some(chunk) = chunks.next().await {
        all.extend_from_slice(&chunk?);
    }
    Ok(all)
}

pub(super) async fn written_and_read_back(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    let large = content(3_000_001);
    let tar = archive(&[("conformance/large", &large), ("conformance/empty", b"")]);
    bench.provider.write_files(&run, "/tmp", false, body(tar)).await?;
    check!(read(bench, &made.run, "/tmp/conformance/large", None).await? == large, "3 MB came back changed");
    check!(
        read(bench, &made.run, "conformance/empty", Some("/tmp")).await?.is_empty(),
        "an empty file is not"
    );
    let owner = bench.ok(&made.run, "stat -c '%U %a' /tmp/conformance/large").await?;
    check!(owner == "ubuntu 640", "{owner}");
    let tar = archive(&[("conformance/large", b"over")]);
    bench.provider.write_files(&run, "/tmp", false, body(tar)).await?;
    check!(
        read(bench, &made.run, "/tmp/conformance/large", None).await? == b"over",
        "it was not overwritten"
    );
    Ok(())
}

/// What comes after the end of an archive is of no interest; a body that breaks
/// is.
pub(super) async fn archives_end_and_break(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    for round in 0..10 {
        let mut tar = archive(&[("file", format!("round {round}").as_bytes())]);
        tar.resize(tar.len() + (1 << 20), 0);
        bench.provider.write_files(&run, "/tmp", false, body(tar)).await?;
    }
    check!(bench.ok(&made.run, "cat /tmp/file").await? == "round 9", "the last one did not arrive");
    let whole = archive(&[("large", &content(1_000_000))]);
    let half = Ok(Bytes::copy_from_slice(&whole[..500_000]));
    let broken: BodyStream =
        Box::pin(futures::stream::iter([half, Err(std::io::Error::other("the caller went away"))]));
    let written = bench.provider.write_files(&run, "/tmp", false, broken).await;
    check!(written.is_err(), "half an archive was taken for a whole one");
    check!(bench.sh(&made.run, "true").await?.code == 0, "a broken body broke the sandbox");
    Ok(())
}

pub(super) async fn missing_and_forbidden(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    check_error!(read(bench, &made.run, "/tmp/none", None).await, ProviderError::NotFound(_));
    for path in ["/etc/shadow", "/etc"] {
        check_error!(
            read(bench, &made.run, path, None).await,
            ProviderError::Refused { .. } | ProviderError::Invalid(_)
        );
    }
    // Names lead nowhere else than below the directory.
    bench.ok(&made.run, "mkdir /tmp/in").await?;
    let write =
        bench.provider.write_files(&run, "/tmp/in", false, body(archive(&[("../escaped", b"x")]))).await;
    // Refused or put elsewhere: either will do.
    drop(write);
    check!(bench.ok(&made.run, "ls -d /tmp/escaped 2>/dev/null || echo none").await? == "none", "it got out");
    Ok(())
}

pub(super) async fn directories(bench: &Bench) -> Outcome {
    let made = bench.sandbox("a").await?;
    let run = bench.run_ref(&made.run);
    bench.provider.mkdir(&run, "made", None, false).await?;
    let owner = bench.ok(&made.run, "stat -c '%U %F' made").await?;
    check!(owner == "ubuntu directory", "{owner}");
    bench.provider.mkdir(&run, "deep/er", Some("/tmp"), true).await?;
    bench.provider.mkdir(&run, "deep/er", Some("/tmp"), true).await?;
    check!(bench.ok(&made.run, "ls /tmp/deep").await? == "er", "with parents");
    let orphan = bench.provider.mkdir(&run, "/tmp/no/parent", None, false).await;
    if orphan.is_ok() {
        return Err(Failure("a directory was made without its parent".to_owned()));
    }
    Ok(())
}
