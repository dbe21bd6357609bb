//! gRPC over bare HTTP/2, for clients that do what no gRPC library would do.

use std::{
    io::{self, Read, Write},
    net::TcpStream,
    time::Duration,
};

use bytes::Bytes;
use flate2::read::{GzEncoder, ZlibEncoder};
use h2::client::{ResponseFuture, SendRequest};
use prost::Message;
use tonic::Status;

use super::Server;

pub const CLASSIFY: &str = "/resnet18.v1.Classifier/Classify";
pub const STREAM_CLASSIFY: &str = "/resnet18.v1.Classifier/StreamClassify";

/// A message with gRPC's prefix: a compression flag of one byte, and the length in four.
pub fn framed(message: &impl Message) -> Vec<u8> {
    let length = message.encoded_len() as u32;
    [&[0], &length.to_be_bytes()[..], &message.encode_to_vec()].concat()
}

/// How a message is compressed.
#[derive(Clone, Copy, Debug)]
pub enum Encoding {
    Deflate,
    Gzip,
    Zstd,
}

/// A message that is compressed, with gRPC's prefix.
pub struct CompressedMessage {
    encoding: &'static str,
    framed: Bytes,
}

impl CompressedMessage {
    pub fn new(encoding: Encoding, message: &impl Message) -> Self {
        let message = message.encode_to_vec();
        let (encoding, compressed) = match encoding {
            Encoding::Deflate => {
                let mut zlib = ZlibEncoder::new(&message[..], flate2::Compression::fast());
                let mut compressed = Vec::new();
                zlib.read_to_end(&mut compressed).unwrap();
                ("deflate", compressed)
            }
            Encoding::Gzip => {
                let mut gzip = GzEncoder::new(&message[..], flate2::Compression::fast());
                let mut compressed = Vec::new();
                gzip.read_to_end(&mut compressed).unwrap();
                ("gzip", compressed)
            }
            Encoding::Zstd => {
                let level = ruzstd::encoding::CompressionLevel::Fastest;
                (
                    "zstd",
                    ruzstd::encoding::compress_to_vec(&message[..], level),
                )
            }
        };
        let length = compressed.len() as u32;
        let framed = [&[1], &length.to_be_bytes()[..], &compressed]
            .concat()
            .into();
        Self { encoding, framed }
    }

    /// Classifies with this message, which not every gRPC library can.
    pub async fn classify(&self, connection: &mut SendRequest<Bytes>) -> Status {
        let call = call(CLASSIFY).header("grpc-encoding", self.encoding);
        let (response, mut sender) = connection
            .send_request(call.body(()).unwrap(), false)
            .unwrap();
        sender.send_data(self.framed.clone(), true).unwrap();
        status(response).await.unwrap()
    }
}

/// Classifies with a compressed message, on a connection of its own.
pub async fn compressed_call(
    server: &Server,
    encoding: Encoding,
    message: &impl Message,
) -> Status {
    let mut connection = connect(&server.grpc).await;
    CompressedMessage::new(encoding, message)
        .classify(&mut connection)
        .await
}

/// A connection by the h2 library, which follows HTTP/2.
pub async fn connect(address: &str) -> SendRequest<Bytes> {
    connect_with(h2::client::Builder::new(), address).await
}

/// Like [`connect`], with the settings of `builder`.
pub async fn connect_with(builder: h2::client::Builder, address: &str) -> SendRequest<Bytes> {
    let stream = tokio::net::TcpStream::connect(address)
        .await
        .expect("the server accepts");
    handshake(builder, stream).await
}

async fn handshake(
    builder: h2::client::Builder,
    stream: tokio::net::TcpStream,
) -> SendRequest<Bytes> {
    let (sender, connection) = builder
        .handshake(stream)
        .await
        .expect("the server speaks HTTP/2");
    tokio::spawn(async move {
        // Its calls fail when the connection does.
        let _ = connection.await;
    });
    sender.ready().await.expect("a new connection takes calls")
}

/// Like [`connect`], from this address of the machine: Linux has all of 127.0.0.0/8.
pub async fn connect_from(own: [u8; 4], address: &str) -> SendRequest<Bytes> {
    let socket = tokio::net::TcpSocket::new_v4().unwrap();
    socket.bind((own, 0).into()).expect("a loopback address");
    let stream = socket.connect(address.parse().unwrap()).await;
    handshake(
        h2::client::Builder::new(),
        stream.expect("the server accepts"),
    )
    .await
}

/// The head of a gRPC call.
pub fn call(path: &str) -> http::request::Builder {
    http::Request::post(format!("http://test{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
}

/// The gRPC status of a call, from its headers or its trailers.
pub async fn status(response: ResponseFuture) -> Result<Status, h2::Error> {
    let (head, mut body) = response.await?.into_parts();
    if let Some(status) = Status::from_header_map(&head.headers) {
        return Ok(status);
    }
    while let Some(data) = body.data().await {
        body.flow_control().release_capacity(data?.len())?;
    }
    let trailers = body.trailers().await?.unwrap_or_default();
    Ok(Status::from_header_map(&trailers)
        .unwrap_or_else(|| Status::unknown(format!("no gRPC status, HTTP {}", head.status))))
}

/// A connection on which a test sends any bytes, valid HTTP/2 or not.
pub struct Wire(pub TcpStream);

/// The types of frames (RFC 9113, 6).
pub mod kind {
    pub const DATA: u8 = 0;
    pub const HEADERS: u8 = 1;
    pub const RST_STREAM: u8 = 3;
    pub const SETTINGS: u8 = 4;
    pub const PING: u8 = 6;
    pub const GOAWAY: u8 = 7;
    pub const CONTINUATION: u8 = 9;
}

/// The flag of the last frame of a header block (RFC 9113, 6.2).
pub const END_HEADERS: u8 = 4;

/// The error code for a peer that may be causing excessive load (RFC 9113, 7).
pub const ENHANCE_YOUR_CALM: u32 = 0xb;

impl Wire {
    /// Connects and sends HTTP/2's preface with empty settings.
    pub fn connect(address: &str) -> Self {
        let mut stream = TcpStream::connect(address).expect("the server accepts");
        stream
            .set_write_timeout(Some(Duration::from_secs(2)))
            .unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(20)))
            .unwrap();
        stream
            .write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            .unwrap();
        stream.write_all(&frame(kind::SETTINGS, 0, 0, &[])).unwrap();
        Self(stream)
    }

    /// Sends the frames until the server reads no more or closes the connection.
    pub fn send_all(&mut self, frames: impl Iterator<Item = Vec<u8>>) {
        let mut buffer = Vec::new();
        for frame in frames {
            buffer.extend(frame);
            if buffer.len() > 64 << 10 {
                if self.0.write_all(&buffer).is_err() {
                    return;
                }
                buffer.clear();
            }
        }
        let _ = self.0.write_all(&buffer);
    }

    /// Waits for the connection's end; returns the error code of the server's GOAWAY, or `None`
    /// when there was none. It is an error if the connection stays open.
    pub fn ended(&mut self) -> io::Result<Option<u32>> {
        let mut reason = None;
        loop {
            match self.next() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => return Ok(reason),
                Ok((kind::GOAWAY, payload)) => {
                    reason = payload
                        .get(4..8)
                        .map(|code| u32::from_be_bytes(code.try_into().unwrap()));
                }
                Ok(_) => {}
            }
        }
    }

    /// Reads frames up to the first of this type.
    pub fn wait_for(&mut self, wanted: u8) -> io::Result<()> {
        while self.next()?.0 != wanted {}
        Ok(())
    }

    /// The type and the payload of the next frame.
    fn next(&mut self) -> io::Result<(u8, Vec<u8>)> {
        let mut head = [0; 9];
        self.0.read_exact(&mut head)?;
        let mut payload = vec![0; u32::from_be_bytes([0, head[0], head[1], head[2]]) as usize];
        self.0.read_exact(&mut payload)?;
        Ok((head[3], payload))
    }

    /// Closes the connection with a TCP reset, which discards all data in flight.
    pub fn reset(self) {
        let option = rustix::net::sockopt::set_socket_linger(&self.0, Some(Duration::ZERO));
        option.expect("a TCP socket can be told not to linger");
    }
}

/// An HTTP/2 frame (RFC 9113, 4.1).
pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let [_, length @ ..] = (payload.len() as u32).to_be_bytes();
    [&length[..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// The header block of a gRPC call.
pub fn headers(path: &str) -> Vec<u8> {
    let fields = [
        (":method", "POST"),
        (":scheme", "http"),
        (":authority", "test"),
        (":path", path),
        ("content-type", "application/grpc"),
        ("te", "trailers"),
    ];
    fields
        .into_iter()
        .flat_map(|(name, value)| field(name, value))
        .collect()
}

/// A literal header field without indexing and without Huffman coding (RFC 7541, 6.2.2).
pub fn field(name: &str, value: &str) -> Vec<u8> {
    [
        &[0],
        &integer(name.len())[..],
        name.as_bytes(),
        &integer(value.len()),
        value.as_bytes(),
    ]
    .concat()
}

/// An integer with a prefix of 7 bits (RFC 7541, 5.1).
fn integer(number: usize) -> Vec<u8> {
    if number < 127 {
        return vec![number as u8];
    }

    let mut bytes = vec![127];
    let mut rest = number - 127;
    while rest >= 128 {
        bytes.push(rest as u8 | 128);
        rest /= 128;
    }
    bytes.push(rest as u8);
    bytes
}
