use std::time::Duration;

use k8s_openapi::api::core::v1::ObjectReference;

use crate::testing::MiniServer;
use crate::{EventRecorder, EventType};

#[tokio::test]
async fn repeats_are_counted_and_a_full_queue_drops() {
    let server = MiniServer::new();
    let events = EventRecorder::new(server.client(), "tester", "n1");
    let about = ObjectReference { name: Some("p".into()), namespace: Some("a".into()), ..Default::default() };
    for _ in 0..3 {
        events.event(&about, EventType::Warning, "BackOff", "again");
    }
    events.event(&about, EventType::Normal, "Started", "once");
    for _ in 0..500 {
        tokio::time::sleep(Duration::from_millis(2)).await;
        if server.objects("events").len() == 2 {
            break;
        }
    }
    let mut seen: Vec<String> = server
        .objects("events")
        .iter()
        .map(|e| {
            format!("{} {} {} {}", e["metadata"]["namespace"], e["reason"], e["count"], e["source"]["host"])
        })
        .collect();
    seen.sort();
    assert_eq!(seen, [r#""a" "BackOff" 3 "n1""#, r#""a" "Started" 1 "n1""#]);
    server.set_fault(|_| Some(api::Status::unavailable("down")));
    for _ in 0..3000 {
        events.event(&about, EventType::Normal, "Started", "many");
    }
    assert!(events.dropped() > 1000);
}
