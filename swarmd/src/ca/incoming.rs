//! Accepted TLS connections for a tonic server, each with its [`Peer`].
//!
//! Invariants:
//! - A silent, slow or hostile client costs at most one of a bounded number of slots, for a bounded
//!   time. Nothing is taken from clients with a certificate of the cluster: once the handshake is
//!   done they hold no slot.
//! - The server sees only connections whose handshake succeeded.
//! - Each handshake uses the certificate and roots that are current at its beginning.
//!
//! Shell: one task, owned by the [`TlsIncoming`]; dropping it closes the listener and ends all
//! handshakes.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_stream::Stream;
use tokio_util::sync::CancellationToken;
use tonic::transport::server::Connected;

use super::slots::{SlotId, Slots};
use super::tls::SecurityConfig;
use super::{Peer, PeerIdentity};

/// Finished handshakes that wait for the server to take them.
const READY_QUEUE: usize = 64;
/// Pause after a failed accept (no file descriptors left): long enough to spare the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Bounds on clients that have not shown a certificate.
#[derive(Debug, Clone, Copy)]
pub struct ListenLimits {
    /// Time for a TLS handshake.
    pub handshake_timeout: Duration,
    /// Handshakes at one time. One more, and the oldest of the busiest address is dropped.
    pub max_handshakes: usize,
    /// Connections without a client certificate at one time; same rule.
    pub max_anonymous: usize,
    /// Longest life of a connection without a client certificate.
    pub anonymous_life: Duration,
}

impl Default for ListenLimits {
    /// 5 s (SwarmKit's RPC timeout of the CA) and numbers that fit the usual limit of 1024 file
    /// descriptors with room for the nodes. Joining takes seconds; 120 s is ample.
    fn default() -> Self {
        Self {
            handshake_timeout: Duration::from_secs(5),
            max_handshakes: 256,
            max_anonymous: 256,
            anonymous_life: Duration::from_secs(120),
        }
    }
}

/// A stream of connections for `tonic::transport::Server::serve_with_incoming`.
#[derive(Debug)]
pub struct TlsIncoming {
    ready: mpsc::Receiver<TlsConnection>,
    local_addr: SocketAddr,
    /// Aborts the accepting task, and with it all handshakes, when dropped.
    _task: JoinSet<()>,
}

impl TlsIncoming {
    /// Accepts on `listener` as this node. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// When the listener has no local address.
    pub fn new(
        listener: TcpListener,
        security: SecurityConfig,
        limits: ListenLimits,
    ) -> io::Result<Self> {
        let local_addr = listener.local_addr()?;
        let (send, ready) = mpsc::channel(READY_QUEUE);
        let mut task = JoinSet::new();
        let acceptor = Arc::new(Acceptor {
            security,
            limits,
            anonymous: Arc::new(Mutex::new(Slots::new(limits.max_anonymous))),
            send,
        });
        task.spawn(accept_loop(listener, acceptor));
        Ok(Self {
            ready,
            local_addr,
            _task: task,
        })
    }

    /// Where it listens: the real port also when port 0 was asked for.
    #[must_use]
    pub fn local_addr(&self) -> SocketAddr {
        self.local_addr
    }
}

impl Stream for TlsIncoming {
    type Item = io::Result<TlsConnection>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.ready
            .poll_recv(cx)
            .map(|connection| connection.map(Ok))
    }
}

#[derive(Debug)]
struct Acceptor {
    security: SecurityConfig,
    limits: ListenLimits,
    anonymous: Arc<Mutex<Slots<CancellationToken>>>,
    send: mpsc::Sender<TlsConnection>,
}

async fn accept_loop(listener: TcpListener, acceptor: Arc<Acceptor>) {
    let pending: Arc<Mutex<Slots<AbortHandle>>> =
        Arc::new(Mutex::new(Slots::new(acceptor.limits.max_handshakes)));
    let mut handshakes: JoinSet<()> = JoinSet::new();
    loop {
        tokio::select! {
            biased;
            Some(_) = handshakes.join_next() => {}
            accepted = listener.accept() => match accepted {
                Ok((stream, addr)) => start_handshake(&mut handshakes, &pending, &acceptor, (stream, addr)),
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection");
                    // Most likely no file descriptors are left: take one back from a silent client.
                    if let Some(oldest) = lock(&pending).evict() {
                        oldest.abort();
                    }
                    acceptor.security.clock().sleep(ACCEPT_PAUSE).await;
                }
            },
        }
    }
}

fn start_handshake(
    handshakes: &mut JoinSet<()>,
    pending: &Arc<Mutex<Slots<AbortHandle>>>,
    acceptor: &Arc<Acceptor>,
    (stream, addr): (TcpStream, SocketAddr),
) {
    let (acceptor, pending_by_task) = (Arc::clone(acceptor), Arc::clone(pending));
    let (tell, told) = tokio::sync::oneshot::channel();
    let task = handshakes.spawn(async move {
        let id = told.await.ok();
        let connection = handshake(&acceptor, stream, addr).await;
        if let Some(id) = id {
            lock(&pending_by_task).remove(id);
        }
        if let Some(connection) = connection {
            // Fails only when the server is gone.
            acceptor.send.send(connection).await.ok();
        }
    });
    let (id, evicted) = lock(pending).insert(addr.ip(), task);
    if let Some(oldest) = evicted {
        tracing::debug!(%addr, "too many handshakes: dropped the oldest of the busiest address");
        oldest.abort();
    }
    // The task waits for it; it is gone only if it was aborted just now.
    tell.send(id).ok();
}

async fn handshake(
    acceptor: &Acceptor,
    stream: TcpStream,
    addr: SocketAddr,
) -> Option<TlsConnection> {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%addr, %error, "can't set TCP_NODELAY");
    }
    let tls = TlsAcceptor::from(acceptor.security.server_config());
    let limit = acceptor.limits.handshake_timeout;
    let io = match acceptor
        .security
        .clock()
        .timeout(limit, tls.accept(stream))
        .await
    {
        Ok(Ok(io)) => io,
        Ok(Err(error)) => {
            tracing::debug!(%addr, %error, "TLS handshake failed");
            return None;
        }
        Err(error) => {
            tracing::debug!(%addr, %error, "TLS handshake timed out");
            return None;
        }
    };
    let certificate = io.get_ref().1.peer_certificates().and_then(<[_]>::first);
    let identity = match certificate
        .map(|der| PeerIdentity::from_der(der))
        .transpose()
    {
        Ok(identity) => identity,
        Err(error) => {
            tracing::debug!(%addr, %error, "client certificate names no node");
            return None;
        }
    };
    // One whose time is over is good for a new one alone, which takes no longer than joining.
    let now = acceptor.security.clock().now();
    let counts = identity.as_ref().is_some_and(|peer| now < peer.not_after);
    let watch = (!counts).then(|| AnonymousSlot::take(acceptor, addr));
    Some(TlsConnection {
        io,
        peer: Peer::Remote { addr, identity },
        watch,
    })
}

/// One accepted TLS connection.
#[derive(Debug)]
pub struct TlsConnection {
    io: TlsStream<TcpStream>,
    peer: Peer,
    watch: Option<AnonymousSlot>,
}

/// Ends a connection without a certificate when its time is over or its slot is needed.
struct AnonymousSlot {
    id: SlotId,
    slots: Arc<Mutex<Slots<CancellationToken>>>,
    /// `None` once it has completed.
    over: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl std::fmt::Debug for AnonymousSlot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("AnonymousSlot")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

impl AnonymousSlot {
    fn take(acceptor: &Acceptor, addr: SocketAddr) -> Self {
        let token = CancellationToken::new();
        let (id, evicted) = lock(&acceptor.anonymous).insert(addr.ip(), token.clone());
        if let Some(oldest) = evicted {
            tracing::debug!(%addr, "too many connections without a certificate: dropped the oldest of the busiest address");
            oldest.cancel();
        }
        let (clock, life) = (
            acceptor.security.clock().clone(),
            acceptor.limits.anonymous_life,
        );
        let over = async move {
            tokio::select! {
                biased;
                () = token.cancelled() => {}
                () = clock.sleep(life) => {}
            }
        };
        Self {
            id,
            slots: Arc::clone(&acceptor.anonymous),
            over: Some(Box::pin(over)),
        }
    }

    fn is_over(&mut self, cx: &mut Context<'_>) -> bool {
        if self
            .over
            .as_mut()
            .is_some_and(|over| over.as_mut().poll(cx).is_ready())
        {
            self.over = None;
        }
        self.over.is_none()
    }
}

impl Drop for AnonymousSlot {
    fn drop(&mut self) {
        lock(&self.slots).remove(self.id);
    }
}

impl TlsConnection {
    fn check(&mut self, cx: &mut Context<'_>) -> io::Result<()> {
        if self.watch.as_mut().is_some_and(|slot| slot.is_over(cx)) {
            let reason = "a connection without a certificate has had its time";
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, reason));
        }
        Ok(())
    }
}

impl Connected for TlsConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        self.peer.clone()
    }
}

impl AsyncRead for TlsConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.check(cx)?;
        Pin::new(&mut self.io).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.io).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_shutdown(cx)
    }
}

/// The sets hold no invariant that a panic elsewhere could break.
fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
