//! Accepting connections, not more than a limit, and ending those that say nothing: whoever reaches the port
//! could otherwise take all places without a certificate.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::Stream;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tonic::transport::server::{Connected, TcpConnectInfo};

/// A connection that counts until it is dropped.
#[derive(Debug)]
pub struct Counted {
    stream: TcpStream,
    silence: Duration,
    /// When the other side has said nothing for too long.
    over: Pin<Box<Sleep>>,
    _permit: OwnedSemaphorePermit,
}

/// Connections to a listener, of which at most `limit` are open; more wait in the kernel's backlog. One whose
/// other side says nothing for as long as `silence` ends; it must be longer than the pings of HTTP/2 are apart.
pub fn incoming(
    listener: TcpListener,
    limit: usize,
    silence: Duration,
) -> impl Stream<Item = io::Result<Counted>> {
    let permits = Arc::new(Semaphore::new(limit));
    futures_util::stream::unfold((listener, permits), move |(listener, permits)| async move {
        let permit = permits.clone().acquire_owned().await.ok()?;
        let stream = loop {
            match listener.accept().await {
                Ok((stream, _)) => break stream,
                Err(error) => {
                    // Out of file descriptors, or the peer is gone already.
                    tracing::warn!(%error, "A connection could not be accepted; raise LimitNOFILE if this repeats");
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            }
        };
        // Small messages go out at once; a refusal costs latency only.
        let _ = stream.set_nodelay(true);
        Some((
            Ok(Counted {
                stream,
                silence,
                over: Box::pin(tokio::time::sleep(silence)),
                _permit: permit,
            }),
            (listener, permits),
        ))
    })
}

impl Connected for Counted {
    type ConnectInfo = TcpConnectInfo;

    fn connect_info(&self) -> TcpConnectInfo {
        self.stream.connect_info()
    }
}

impl AsyncRead for Counted {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.stream).poll_read(cx, buffer);
        if read.is_pending() {
            return self.over.as_mut().poll(cx).map(|()| {
                Err(io::Error::new(
                    io::ErrorKind::TimedOut,
                    "the other side said nothing for too long",
                ))
            });
        }
        if buffer.filled().len() > before {
            let next = Instant::now() + self.silence;
            self.over.as_mut().reset(next);
        }
        read
    }
}

impl AsyncWrite for Counted {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::StreamExt as _;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    #[tokio::test]
    async fn silence_ends_a_connection_and_words_keep_it() {
        let silence = Duration::from_millis(400);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut accepted = Box::pin(incoming(listener, 1, silence));
        let mut client = TcpStream::connect(address).await.unwrap();
        let mut served = accepted.next().await.unwrap().unwrap();
        let start = Instant::now();
        let mut byte = [0];
        while start.elapsed() < 2 * silence {
            client.write_all(b"x").await.unwrap();
            served.read_exact(&mut byte).await.unwrap();
            tokio::time::sleep(silence / 8).await;
        }
        let error = tokio::time::timeout(10 * silence, served.read_exact(&mut byte))
            .await
            .expect("silence did not end the connection")
            .unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        // Its place is free again.
        drop(served);
        let _second = TcpStream::connect(address).await.unwrap();
        accepted.next().await.unwrap().unwrap();
    }
}
