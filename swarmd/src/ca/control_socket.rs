//! The control socket: a UNIX socket for operators on this host.
//!
//! Who may open the file may do everything, so the file's mode is the authentication. Invariants:
//! - The socket never exists with a wider mode: it is bound under another name, restricted, and then
//!   renamed.
//! - A socket that another process answers on is never taken over; one that nobody answers on (left
//!   by a crash) is replaced.

use std::fs;
use std::future::Future;
use std::io;
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::Stream;
use tonic::transport::server::Connected;

use super::Peer;
use crate::clock::Clock;

/// Owner and group: root unless the operator gives the file to a group.
const SOCKET_MODE: u32 = 0o660;
/// Bytes of a socket's path (`sun_path` of unix(7), less the final NUL).
const MAX_PATH_BYTES: usize = 107;
/// Pause after a failed accept (no file descriptors left): long enough to spare the processor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Suffix under which the socket is bound before it appears.
const SUFFIX: &str = ".new";

/// Why the control socket could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ControlSocketError {
    /// Another process serves it.
    #[error("the control socket {} is in use by another process: stop that swarmd, or choose another path with --listen-control-api", path.display())]
    InUse {
        /// The socket.
        path: PathBuf,
    },
    /// Something that is no socket has the name.
    #[error("{} exists and is no socket: remove it, or choose another path with --listen-control-api", path.display())]
    NotASocket {
        /// The file.
        path: PathBuf,
    },
    /// The system's limit.
    #[error("the control socket's path {} has {} bytes and the system allows {MAX_PATH_BYTES} (4 are kept for a suffix): choose a shorter one with --listen-control-api", path.display(), path.as_os_str().len())]
    TooLong {
        /// The socket.
        path: PathBuf,
    },
    /// Anything else.
    #[error("can't open the control socket {}: {source}; check the directory, or choose another path with --listen-control-api", path.display())]
    Io {
        /// The socket.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
}

/// A listening control socket: a stream of connections for a tonic server. Dropping it removes the
/// file.
pub struct ControlSocket {
    listener: UnixListener,
    path: PathBuf,
    inode: u64,
    clock: Clock,
    /// Set after a failed accept.
    pause: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
}

impl std::fmt::Debug for ControlSocket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ControlSocket")
            .field("path", &self.path)
            .finish_non_exhaustive()
    }
}

impl ControlSocket {
    /// Opens the socket, making its directory if need be. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// See [`ControlSocketError`].
    pub async fn bind(path: &Path, clock: Clock) -> Result<Self, ControlSocketError> {
        let io = |source| ControlSocketError::Io {
            path: path.to_owned(),
            source,
        };
        if path.as_os_str().len().saturating_add(SUFFIX.len()) > MAX_PATH_BYTES {
            return Err(ControlSocketError::TooLong {
                path: path.to_owned(),
            });
        }
        check_free(path).await?;
        if let Some(dir) = path.parent().filter(|d| !d.as_os_str().is_empty()) {
            fs::create_dir_all(dir).map_err(io)?;
        }
        let mut temporary = path.as_os_str().to_owned();
        temporary.push(SUFFIX);
        let temporary = PathBuf::from(temporary);
        match fs::remove_file(&temporary) {
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(io(e)),
            Ok(()) | Err(_) => {}
        }
        let listener = UnixListener::bind(&temporary).map_err(io)?;
        let appear = || {
            fs::set_permissions(&temporary, fs::Permissions::from_mode(SOCKET_MODE))?;
            fs::rename(&temporary, path)?;
            Ok(fs::symlink_metadata(path)?.ino())
        };
        let inode = appear().map_err(io)?;
        Ok(Self {
            listener,
            path: path.to_owned(),
            inode,
            clock,
            pause: None,
        })
    }

    /// The socket's file.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Fails if the path is served by someone or is no socket.
async fn check_free(path: &Path) -> Result<(), ControlSocketError> {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.file_type().is_socket() => {}
        Ok(_) => {
            return Err(ControlSocketError::NotASocket {
                path: path.to_owned(),
            });
        }
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(source) => {
            return Err(ControlSocketError::Io {
                path: path.to_owned(),
                source,
            });
        }
    }
    match UnixStream::connect(path).await {
        Ok(_) => Err(ControlSocketError::InUse {
            path: path.to_owned(),
        }),
        Err(e) if e.kind() == io::ErrorKind::ConnectionRefused => Ok(()),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(ControlSocketError::Io {
            path: path.to_owned(),
            source,
        }),
    }
}

impl Drop for ControlSocket {
    fn drop(&mut self) {
        // Not if another process has put its own socket there since.
        if fs::symlink_metadata(&self.path).is_ok_and(|meta| meta.ino() == self.inode)
            && let Err(error) = fs::remove_file(&self.path)
        {
            tracing::debug!(path = %self.path.display(), %error, "can't remove the control socket");
        }
    }
}

impl Stream for ControlSocket {
    type Item = io::Result<LocalConnection>;

    /// Never yields an error: it would end the server. The usual one, no file descriptors left,
    /// passes.
    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        loop {
            if let Some(pause) = &mut self.pause {
                ready!(pause.as_mut().poll(cx));
                self.pause = None;
            }
            match ready!(self.listener.poll_accept(cx)) {
                Ok((stream, _)) => return Poll::Ready(Some(Ok(LocalConnection(stream)))),
                Err(error) => {
                    tracing::warn!(%error, "can't accept a connection on the control socket");
                    let clock = self.clock.clone();
                    self.pause = Some(Box::pin(async move { clock.sleep(ACCEPT_PAUSE).await }));
                }
            }
        }
    }
}

/// One accepted connection of the control socket.
#[derive(Debug)]
pub struct LocalConnection(UnixStream);

impl Connected for LocalConnection {
    type ConnectInfo = Peer;

    fn connect_info(&self) -> Peer {
        Peer::Local
    }
}

impl AsyncRead for LocalConnection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(cx, buf)
    }
}

impl AsyncWrite for LocalConnection {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(cx)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn bind(path: &Path) -> Result<ControlSocket, ControlSocketError> {
        ControlSocket::bind(path, Clock::real()).await
    }

    #[tokio::test]
    async fn appears_restricted_and_disappears() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("run/swarm.sock");
        let socket = bind(&path).await.unwrap();
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, SOCKET_MODE);
        assert!(matches!(
            bind(&path).await,
            Err(ControlSocketError::InUse { .. })
        ));
        assert!(path.exists(), "the refused second did no harm");
        drop(socket);
        assert!(!path.exists());
    }

    #[tokio::test]
    async fn a_dead_socket_is_replaced_and_a_file_is_not() {
        let tmp = tempfile::tempdir().unwrap();
        let path = tmp.path().join("swarm.sock");
        // The standard library leaves the file when the listener goes, as a crash does.
        drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
        assert!(path.exists());
        let socket = bind(&path).await.unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "precious").unwrap();
        assert!(matches!(
            bind(&path).await,
            Err(ControlSocketError::NotASocket { .. })
        ));
        drop(socket);
        assert!(path.exists(), "only its own file is removed");
        let long = tmp.path().join("x".repeat(120));
        assert!(matches!(
            bind(&long).await,
            Err(ControlSocketError::TooLong { .. })
        ));
    }
}
