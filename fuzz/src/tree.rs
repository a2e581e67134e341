//! Mutation of JSON values: what is made is always JSON, and mostly of the right shape.

use fastrand::Rng;
use serde_json::{Map, Number, Value};

/// At most so many changes of one value.
const CHANGES: usize = 6;

/// Makes values from valid ones: fields change their values, names and places, and those of others
/// come into them.
#[derive(Debug, Clone)]
pub struct Trees {
    corpus: Vec<Value>,
    /// Values of fields, by the fields' names.
    fields: Vec<(String, Value)>,
    /// Texts that readers know.
    words: Vec<String>,
}

impl Trees {
    /// From valid values, and texts that readers know.
    pub fn new(corpus: Vec<Value>, words: &[&str]) -> Self {
        let mut fields = Vec::new();
        corpus.iter().for_each(|value| collect(value, &mut fields));
        Trees { corpus, fields, words: words.iter().map(|word| (*word).to_owned()).collect() }
    }

    /// The next value.
    pub fn next(&self, rng: &mut Rng) -> Value {
        let mut value = rng.choice(&self.corpus).cloned().unwrap_or_default();
        for _ in 0..rng.usize(..=CHANGES) {
            let at = rng.usize(..size(&value));
            if let Some(place) = nth(&mut value, at, &mut 0) {
                self.change(place, rng);
            }
        }
        value
    }

    fn change(&self, place: &mut Value, rng: &mut Rng) {
        match place {
            Value::Object(map) if rng.u8(..4) > 0 => self.change_map(map, rng),
            Value::Array(items) if rng.u8(..4) > 0 => self.change_list(items, rng),
            Value::String(text) if rng.u8(..3) > 0 => change_text(text, rng),
            Value::Number(number) if rng.u8(..3) > 0 => *number = self::number(number, rng),
            _ => *place = self.any(rng),
        }
    }

    fn change_map(&self, map: &mut Map<String, Value>, rng: &mut Rng) {
        let names: Vec<String> = map.keys().cloned().collect();
        let name = rng.choice(names);
        match (rng.u8(..5), name) {
            (0, Some(name)) => drop(map.remove(&name)),
            // What belongs to this name elsewhere.
            (1, Some(name)) => {
                let others: Vec<_> = self.fields.iter().filter(|(other, _)| *other == name).collect();
                if let Some((_, value)) = rng.choice(others) {
                    map.insert(name, value.clone());
                }
            }
            (2, Some(name)) => {
                let value = map.remove(&name).unwrap_or_default();
                let other = rng.choice(&self.fields).map(|(name, _)| name.clone());
                map.insert(if rng.bool() { name.to_uppercase() } else { other.unwrap_or(name) }, value);
            }
            _ => {
                if let Some((name, value)) = rng.choice(&self.fields) {
                    map.insert(name.clone(), value.clone());
                }
            }
        }
    }

    fn change_list(&self, items: &mut Vec<Value>, rng: &mut Rng) {
        let Some(at) = (!items.is_empty()).then(|| rng.usize(..items.len())) else {
            return items.push(self.any(rng));
        };
        match rng.u8(..4) {
            0 => drop(items.remove(at)),
            1 => {
                let times = if rng.u8(..16) == 0 { 300 } else { 1 };
                items.extend(vec![items[at].clone(); times]);
            }
            2 => items.reverse(),
            _ => items[at] = self.any(rng),
        }
    }

    fn any(&self, rng: &mut Rng) -> Value {
        match rng.u8(..10) {
            0 => Value::Null,
            1 => Value::Bool(rng.bool()),
            2 => Value::from(rng.i64(..)),
            3 => Value::from(rng.i32(-2..70_000)),
            4 => Number::from_f64(rng.f64() * 1e10).map_or(Value::Null, Value::Number),
            5 => Value::from(Vec::<Value>::new()),
            6 => Value::Object(Map::new()),
            7 => Value::from(rng.choice(&self.words).cloned().unwrap_or_default()),
            _ => rng.choice(&self.fields).map(|(_, value)| value.clone()).unwrap_or_default(),
        }
    }
}

fn change_text(text: &mut String, rng: &mut Rng) {
    let mut chars: Vec<char> = text.chars().collect();
    let at = rng.usize(..=chars.len());
    match rng.u8(..5) {
        0 => chars.truncate(at),
        1 => chars.insert(at, rng.char(..)),
        2 => {
            chars.insert(at, rng.choice(['.', '/', ':', '-', '0', ' ', '%', '\0', '\u{feff}']).unwrap_or(' '))
        }
        3 => chars.clear(),
        _ => {
            let times = rng.usize(1..20);
            chars = chars.repeat(times);
        }
    }
    // As long as names of the API may be, and a bit more.
    chars.truncate(2_000);
    *text = chars.into_iter().collect();
}

fn number(number: &Number, rng: &mut Rng) -> Number {
    let limits = [0, -1, 1, 80, 65_535, 65_536, i64::MAX, i64::MIN, i64::from(i32::MAX) + 1];
    let near = number.as_i64().unwrap_or(0).wrapping_add(rng.i64(-1..=1));
    Number::from(rng.choice(limits).filter(|_| rng.bool()).unwrap_or(near))
}

/// All values within one that are fields of something, with their names.
fn collect(value: &Value, into: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(map) => {
            for (name, value) in map {
                into.push((name.clone(), value.clone()));
                collect(value, into);
            }
        }
        Value::Array(items) => items.iter().for_each(|item| collect(item, into)),
        _ => {}
    }
}

/// How many values there are in one, itself too.
fn size(value: &Value) -> usize {
    1 + match value {
        Value::Object(map) => map.values().map(size).sum(),
        Value::Array(items) => items.iter().map(size).sum::<usize>(),
        _ => 0,
    }
}

/// The value of a number, counted from the root.
fn nth<'a>(value: &'a mut Value, at: usize, count: &mut usize) -> Option<&'a mut Value> {
    if *count == at {
        return Some(value);
    }
    *count += 1;
    match value {
        Value::Object(map) => map.values_mut().find_map(|inner| nth(inner, at, count)),
        Value::Array(items) => items.iter_mut().find_map(|inner| nth(inner, at, count)),
        _ => None,
    }
}

/// The API objects in a value, wherever they stand in it; `read` reads texts that have some in
/// them.
pub fn objects(value: &Value, read: &dyn Fn(&str) -> Vec<Value>) -> Vec<Value> {
    let mut found = Vec::new();
    let is_object = value.get("apiVersion").is_some() && value.get("kind").is_some();
    if is_object {
        found.push(value.clone());
    }
    match value {
        Value::Object(map) => found.extend(map.values().flat_map(|inner| objects(inner, read))),
        Value::Array(items) => found.extend(items.iter().flat_map(|item| objects(item, read))),
        Value::String(text) if text.contains("apiVersion") => {
            found.extend(read(text).iter().flat_map(|inner| objects(inner, read)));
        }
        _ => {}
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn every_place_is_changed_some_time_and_the_shape_is_mostly_kept() {
        let original = json!({"kind": "Service", "spec": {"ports": [{"port": 80}], "type": "NodePort"}});
        let trees = Trees::new(vec![original.clone()], &["10.0.0.1"]);
        let mut rng = Rng::with_seed(1);
        let made: Vec<Value> = (0..2_000).map(|_| trees.next(&mut rng)).collect();
        let count = |is: fn(&Value) -> bool| made.iter().filter(|value| is(value)).count();
        assert!(count(|value| value["kind"] == "Service") > 800);
        assert!(count(|value| value["spec"]["ports"][0]["port"] != 80) > 200);
        assert!(made.iter().filter(|value| **value != original).count() > 1_000);
        assert!(made.iter().any(|value| value.to_string().contains("10.0.0.1")));
    }

    #[test]
    fn values_are_counted_and_found_by_number() {
        let mut value = json!({"a": [1, {"b": 2}], "c": 3});
        assert_eq!(size(&value), 6);
        let found: Vec<Value> =
            (0..6).filter_map(|at| nth(&mut value, at, &mut 0).map(|value| value.clone())).collect();
        assert_eq!(found[1..], [json!([1, {"b": 2}]), json!(1), json!({"b": 2}), json!(2), json!(3)]);
        assert!(nth(&mut value, 6, &mut 0).is_none());
    }

    #[test]
    fn objects_are_found_wherever_they_are() {
        let object = json!({"apiVersion": "v1", "kind": "Service"});
        let read = |text: &str| serde_json::from_str(text).into_iter().collect::<Vec<Value>>();
        let all = json!({"steps": [{"apply": [object]}, 1, {"text": object.to_string()}]});
        assert_eq!(objects(&all, &read), [object.clone(), object]);
    }
}
