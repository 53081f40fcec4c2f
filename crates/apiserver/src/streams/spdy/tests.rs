//! A client on frames against the server's side.

use futures_util::stream;

use super::*;

struct Wire(mpsc::Sender<Bytes>);

impl Outgoing for Wire {
    async fn send(&mut self, bytes: Bytes) -> io::Result<()> {
        self.0.send(bytes).await.map_err(io::Error::other)
    }

    async fn close(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub(in crate::streams) struct Client {
    to: Option<mpsc::Sender<Bytes>>,
    from: mpsc::Receiver<Bytes>,
    encoder: Encoder,
    decoder: Decoder,
}

impl Client {
    /// A client of a server that handles streams so.
    pub(in crate::streams) fn of<H>(handle: impl FnOnce(mpsc::Receiver<Stream>) -> H + Send + 'static) -> Self
    where
        H: Future<Output = ()> + Send,
    {
        let (to, incoming) = mpsc::channel::<Bytes>(1);
        let (outgoing, from) = mpsc::channel(1);
        let incoming = Box::pin(stream::unfold(incoming, |mut incoming| async {
            incoming.recv().await.map(|bytes| (Ok(bytes), incoming))
        }));
        tokio::spawn(async move { serve(incoming, Wire(outgoing), handle).await });
        Self { to: Some(to), from, encoder: Encoder::new(), decoder: Decoder::new() }
    }

    pub(in crate::streams) async fn send(&mut self, frame: Frame) {
        let mut bytes = BytesMut::new();
        self.encoder.encode(&frame, &mut bytes);
        self.to.as_ref().unwrap().send(bytes.freeze()).await.unwrap();
    }

    /// The next frame that is not about windows.
    pub(in crate::streams) async fn receive(&mut self) -> Option<Frame> {
        loop {
            match self.decoder.next().unwrap() {
                Some(Frame::WindowUpdate { .. }) => {}
                Some(frame) => return Some(frame),
                None => self.decoder.push(&self.from.recv().await?),
            }
        }
    }
}

fn open(stream: u32) -> Frame {
    let headers = vec![("port".to_owned(), "80".to_owned())];
    Frame::SynStream { stream, headers, fin: false }
}

fn data(stream: u32, text: &'static str, fin: bool) -> Frame {
    Frame::Data { stream, bytes: Bytes::from_static(text.as_bytes()), fin }
}

fn reply(stream: u32) -> Frame {
    Frame::SynReply { stream, headers: Headers::new(), fin: false }
}

#[tokio::test]
async fn a_stream_goes_both_ways_and_the_end_is_said() {
    let mut client = Client::of(|mut opened| async move {
        let mut stream = opened.recv().await.unwrap();
        assert_eq!(stream.header("port"), "80");
        while let Some(bytes) = stream.input.recv().await {
            stream.output.send(bytes).await;
        }
        stream.output.finish().await;
    });
    client.send(open(1)).await;
    assert_eq!(client.receive().await, Some(reply(1)));
    client.send(data(1, "hello", false)).await;
    assert_eq!(client.receive().await, Some(data(1, "hello", false)));
    client.send(Frame::Ping(7)).await;
    assert_eq!(client.receive().await, Some(Frame::Ping(7)));
    client.send(data(1, "", true)).await;
    assert_eq!(client.receive().await, Some(data(1, "", true)));
    assert_eq!(client.receive().await, Some(Frame::GoAway { last: 0, status: 0 }));
    client.to = None;
    assert_eq!(client.receive().await, None);
}

#[tokio::test]
async fn what_is_taken_is_told() {
    let mut client = Client::of(|mut opened| async move {
        let mut stream = opened.recv().await.unwrap();
        while stream.input.recv().await.is_some() {}
    });
    client.send(open(1)).await;
    assert_eq!(client.receive().await, Some(reply(1)));
    client.send(data(1, "hello", false)).await;
    client.decoder.push(&client.from.recv().await.unwrap());
    assert_eq!(client.decoder.next(), Ok(Some(Frame::WindowUpdate { stream: 0, bytes: 5 })));
}

#[tokio::test]
async fn a_broken_stream_is_noticed_and_others_go_on() {
    let (noticed, notice) = oneshot::channel();
    let mut client = Client::of(|mut opened| async move {
        let first = opened.recv().await.unwrap();
        let second = opened.recv().await.unwrap();
        first.broken.await.unwrap();
        noticed.send(()).unwrap();
        second.output.send(Bytes::from_static(b"here")).await;
    });
    client.send(open(1)).await;
    client.send(open(3)).await;
    assert_eq!([client.receive().await, client.receive().await], [Some(reply(1)), Some(reply(3))]);
    client.send(Frame::Reset { stream: 1, status: STATUS_CANCEL }).await;
    notice.await.unwrap();
    assert_eq!(client.receive().await, Some(data(3, "here", false)));
}

#[tokio::test]
async fn a_client_that_goes_away_ends_everything() {
    let (dropped, ended) = oneshot::channel::<()>();
    let mut client = Client::of(|mut opened| async move {
        let _held = dropped;
        let stream = opened.recv().await.unwrap();
        drop(stream.broken.await);
        std::future::pending::<()>().await;
    });
    client.send(open(1)).await;
    assert_eq!(client.receive().await, Some(reply(1)));
    client.to = None;
    assert!(ended.await.is_err(), "the handler is dropped");
}
