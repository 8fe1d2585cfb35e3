// SPDX-License-Identifier: GPL-2.0 OR MIT

//! A link: one socket while it is in force, as a reader and a writer task.

use crate::control::{now, Message};
use crate::lane::{EndedWith, Lane, Outgoing};
use crate::{Config, Error};
use bytes::Bytes;
use neonsan_proto::{Features, Header, Status, VolumeName};
use neonsan_session::client::{
    ConnectKind, Handshake, Identity, Opened, Progress, Received, Receiver, Want,
};
use neonsan_session::{CloseCause, Instant};
use std::io::IoSlice;
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::TcpStream;
use tokio::sync::mpsc::UnboundedSender;
use tokio::task::JoinHandle;

pub(crate) fn crc32c(bytes: &[u8]) -> u32 {
    crc32c::crc32c(bytes)
}

/// Why a try to connect failed, with the node's words if it had any.
pub(crate) struct ConnectError {
    pub(crate) cause: CloseCause,
    pub(crate) error: Error,
}

/// A connection that shook hands.
pub(crate) struct Connected {
    pub(crate) stream: TcpStream,
    pub(crate) opened: Opened,
    /// Addresses of the nodes that serve the volume, as the node told.
    pub(crate) nodes: Vec<SocketAddr>,
}

/// Connects and shakes hands. The caller limits the time.
pub(crate) async fn connect(
    config: &Config,
    session_id: [u8; 16],
    node: SocketAddr,
    kind: ConnectKind,
) -> Result<Connected, ConnectError> {
    let plain = |cause| ConnectError {
        cause,
        error: Error::Connect { node, cause },
    };
    let io_error = |error: std::io::Error| plain(cause_of(&error));
    let volume = VolumeName::parse(&config.volume)
        .map_err(|_| plain(CloseCause::Refused(Status::BadName)))?;
    let identity = Identity {
        volume,
        mode: config.mode,
        force: config.force,
        session_id,
        host_id: config.host_id,
        host_boot: config.host_boot,
        host_name: &config.host_name,
        offered: config.features(),
        required: Features::NONE,
        product: concat!("neonsan-client ", env!("CARGO_PKG_VERSION")),
    };
    let mut stream = TcpStream::connect(node)
        .await
        .map_err(|e| plain(CloseCause::ConnectFailed(e.raw_os_error().unwrap_or(0))))?;
    stream.set_nodelay(true).map_err(io_error)?;
    let mut handshake = Handshake::new(&identity, kind, crc32c);
    loop {
        while !handshake.poll_transmit().is_empty() {
            let sent = stream
                .write(handshake.poll_transmit())
                .await
                .map_err(io_error)?;
            handshake.transmitted(sent);
        }
        let got = stream.read(handshake.want()).await.map_err(io_error)?;
        if got == 0 {
            return Err(plain(CloseCause::PeerClosed));
        }
        match handshake.received(got) {
            Ok(Progress::Pending) => {}
            Ok(Progress::Opened) => break,
            Err(cause) => {
                let error = match handshake.refused() {
                    Some(refused) => Error::Refused {
                        node,
                        status: refused.status,
                        text: refused.text.to_owned(),
                    },
                    None => Error::Connect { node, cause },
                };
                return Err(ConnectError { cause, error });
            }
        }
    }
    let nodes = handshake
        .nodes()
        .map(|n| {
            let ip = std::net::Ipv6Addr::from(n.ip).to_canonical();
            SocketAddr::new(ip, n.port.get())
        })
        .collect();
    match handshake.opened() {
        Some(opened) => Ok(Connected {
            stream,
            opened,
            nodes,
        }),
        None => Err(plain(CloseCause::PeerClosed)),
    }
}

fn cause_of(error: &std::io::Error) -> CloseCause {
    match error.raw_os_error() {
        Some(errno) => CloseCause::SocketError(errno),
        None => CloseCause::PeerClosed,
    }
}

/// The two tasks of a link.
pub(crate) struct Link {
    reader: JoinHandle<()>,
    writer: JoinHandle<()>,
}

impl Link {
    /// Starts the tasks. The first of them that fails reports [`Message::Lost`] with `epoch`.
    pub(crate) fn start(
        lane: Arc<Lane>,
        stream: TcpStream,
        features: Features,
        epoch: u64,
        control: UnboundedSender<Message>,
        clock: fn() -> Instant,
    ) -> Self {
        let (read, write) = stream.into_split();
        let connection = lane.connection();
        let reader = {
            let (lane, control) = (Arc::clone(&lane), control.clone());
            tokio::spawn(async move {
                let cause = read_loop(&lane, read, features, &control, clock).await;
                let _ = control.send(Message::Lost {
                    connection,
                    epoch,
                    cause,
                });
            })
        };
        let writer = tokio::spawn(async move {
            let cause = write_loop(&lane, write, features).await;
            let _ = control.send(Message::Lost {
                connection,
                epoch,
                cause,
            });
        });
        Link { reader, writer }
    }

    /// Ends both tasks; when this returns neither touches a request any more.
    pub(crate) async fn stop(self) {
        self.reader.abort();
        self.writer.abort();
        let _ = self.reader.await;
        let _ = self.writer.await;
    }
}

/// Receives until something goes wrong.
async fn read_loop(
    lane: &Lane,
    read: OwnedReadHalf,
    features: Features,
    control: &UnboundedSender<Message>,
    clock: fn() -> Instant,
) -> CloseCause {
    let mut read = BufReader::with_capacity(64 * 1024, read);
    let mut receiver = Receiver::new(features, crc32c);
    let mut payload: Vec<u8> = Vec::new();
    let mut crc = 0;
    loop {
        let result = match receiver.want() {
            Want::Bytes(space) => match read.read(space).await {
                Ok(0) => return CloseCause::PeerClosed,
                Ok(got) => receiver.received(got, &lane.slots),
                Err(error) => return cause_of(&error),
            },
            Want::Payload { at, remaining, .. } => {
                let at = at as usize;
                payload.resize(at + remaining as usize, 0);
                match read.read(&mut payload[at..]).await {
                    Ok(0) => return CloseCause::PeerClosed,
                    Ok(got) => {
                        if receiver.wants_payload_crc() {
                            let so_far = if at == 0 { 0 } else { crc };
                            crc = crc32c::crc32c_append(so_far, &payload[at..at + got]);
                        }
                        receiver.payload_received(got as u32, crc, &lane.slots)
                    }
                    Err(error) => return cause_of(&error),
                }
            }
        };
        lane.heard(clock());
        match result {
            Err(cause) => return cause,
            Ok(None | Some(Received::PayloadBegins { .. } | Received::Pong { .. })) => {}
            Ok(Some(Received::Completed {
                tag,
                status: Status::Ok,
            })) => {
                lane.complete(tag, Ok(std::mem::take(&mut payload)));
            }
            Ok(Some(Received::Completed { tag, status })) => {
                payload.clear();
                lane.complete(tag, Err(EndedWith::Status(status)));
            }
            Ok(Some(Received::Ping { cookie })) => lane.send_pong(cookie).await,
            Ok(Some(Received::Resized { size_bytes })) => {
                let _ = control.send(Message::Resized { size_bytes });
            }
            Ok(Some(Received::Limits(geometry))) => {
                let _ = control.send(Message::Limits(geometry));
            }
            Ok(Some(Received::GoingAway { grace_ms })) => {
                let _ = control.send(Message::GoingAway { grace_ms });
            }
        }
    }
}

/// Sends until something goes wrong: what waits by one call, as far as it is small.
async fn write_loop(lane: &Lane, write: OwnedWriteHalf, features: Features) -> CloseCause {
    let mut write = BufWriter::with_capacity(64 * 1024, write);
    loop {
        let Some(outgoing) = lane.next_outgoing() else {
            if !write.buffer().is_empty() {
                if let Err(error) = write.flush().await {
                    return cause_of(&error);
                }
                // More may have come meanwhile.
                continue;
            }
            lane.wake.notified().await;
            continue;
        };
        let (mut header, payload) = match outgoing {
            Outgoing::Control(header) => (header, Bytes::new()),
            Outgoing::Request(tag) => match lane.start_sending(tag, now()) {
                Some((request, cookie, payload)) => (request.header(cookie), payload),
                None => continue,
            },
        };
        if features.contains(Features::PAYLOAD_CRC) && !payload.is_empty() {
            header.set_payload_crc(crc32c(&payload));
        }
        if features.contains(Features::HEADER_CRC) {
            header.seal(crc32c);
        }
        if let Err(error) = write_message(&mut write, &header, &payload).await {
            return cause_of(&error);
        }
    }
}

async fn write_message(
    write: &mut BufWriter<OwnedWriteHalf>,
    header: &Header,
    payload: &[u8],
) -> std::io::Result<()> {
    let header = zerocopy::IntoBytes::as_bytes(header);
    let sent = write
        .write_vectored(&[IoSlice::new(header), IoSlice::new(payload)])
        .await?;
    if sent < header.len() {
        write.write_all(&header[sent..]).await?;
        return write.write_all(payload).await;
    }
    write.write_all(&payload[sent - header.len()..]).await
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use neonsan_proto::{Kind, RequestFlags};
    use std::time::Duration;
    use tokio::net::TcpSocket;
    use tokio::time::timeout;
    use zerocopy::IntoBytes as _;

    /// Two ends of a connection that buffers little.
    async fn pair() -> (TcpStream, TcpStream) {
        let listener = TcpSocket::new_v4().unwrap();
        listener.set_recv_buffer_size(4096).unwrap();
        listener.bind(([127, 0, 0, 1], 0).into()).unwrap();
        let listener = listener.listen(1).unwrap();
        let near = TcpSocket::new_v4().unwrap();
        near.set_send_buffer_size(4096).unwrap();
        near.set_recv_buffer_size(4096).unwrap();
        let near = near.connect(listener.local_addr().unwrap()).await.unwrap();
        (near, listener.accept().await.unwrap().0)
    }

    #[tokio::test]
    async fn a_node_that_takes_no_pongs_is_not_heard_until_it_does() {
        let (near, mut far) = pair().await;
        let lane = Arc::new(Lane::new(0, 8, 1 << 20, None));
        let (control, _events) = tokio::sync::mpsc::unbounded_channel();
        let features = Features::NONE;
        let link = Link::start(Arc::clone(&lane), near, features, 1, control, || Instant(0));
        let ping = Header::request(Kind::Ping, RequestFlags::NONE, 7, 0, 0);
        let pings = ping.as_bytes().repeat(2048);
        let mut taken = 0;
        while let Ok(sent) = timeout(Duration::from_millis(500), far.write(&pings)).await {
            taken += sent.unwrap();
            assert!(taken < 32 << 20, "it took {taken} bytes of PINGs");
        }
        // It goes on where it was.
        let mut pongs = vec![0; 32 * 1000];
        timeout(Duration::from_secs(20), far.read_exact(&mut pongs))
            .await
            .unwrap()
            .unwrap();
        let pong = Header::request(Kind::Pong, RequestFlags::NONE, 7, 0, 0);
        assert_eq!(pongs, pong.as_bytes().repeat(1000));
        link.stop().await;
    }
}
