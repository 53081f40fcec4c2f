use super::*;

#[test]
fn frames_and_descriptors_survive_the_trip() {
    let (a, b) = UnixStream::pair().unwrap();
    let plan = ContainerPlan { id: "c".into(), argv: vec!["x".repeat(100_000)], ..ContainerPlan::default() };
    let request = Request::Create(Box::new(plan));
    let sent = request.clone();
    let file = tempfile::tempfile().unwrap();
    let sender = std::thread::spawn(move || send(&a, &sent, &[file.as_fd(), file.as_fd()]).unwrap());
    let (received, fds) = receive::<Request>(&b).unwrap().unwrap();
    sender.join().unwrap();
    assert_eq!(received, request);
    assert_eq!(fds.len(), 2);
    assert!(receive::<Request>(&b).unwrap().is_none());
}

#[test]
fn unknown_versions_and_giant_frames_are_refused() {
    assert!(decode::<Reply>(br#"{"version":99,"body":"Done"}"#).is_err());
    assert_eq!(decode::<Reply>(br#"{"version":1,"body":"Done"}"#), Ok(Reply::Done));
    assert!(frame_length(u32::MAX.to_le_bytes()).is_err());
}
