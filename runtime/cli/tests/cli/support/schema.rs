//! As much of JSON Schema as the schemas of the answers use. What it does not know it refuses, so that no word goes unread.

use serde_json::Value;

/// Words that only people read.
const REMARKS: [&str; 4] = ["$schema", "$id", "title", "description"];

/// Reads a committed schema.
pub(crate) fn read(kind: &str) -> Value {
    let path = super::schemas().join(format!("{kind}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// Says what is wrong with a value, or with the schema itself.
pub(crate) fn check(schema: &Value, value: &Value) -> Result<(), String> {
    let words = schema.as_object().ok_or("a schema is an object")?;
    for (word, says) in words {
        match word.as_str() {
            remark if REMARKS.contains(&remark) => {}
            "type" => check_type(says, value)?,
            "const" if says != value => return Err(format!("{value} is not {says}")),
            "const" => {}
            "enum" if !says.as_array().is_some_and(|all| all.contains(value)) => {
                return Err(format!("{value} is none of {says}"));
            }
            "enum" => {}
            "items" => {
                for item in value.as_array().into_iter().flatten() {
                    check(says, item)?;
                }
            }
            "properties" => check_properties(words, value)?,
            "required" | "additionalProperties" => {
                let is_object = words.contains_key("properties") || says.is_object();
                (is_object).then_some(()).ok_or("belongs to properties")?;
                if says.is_object() {
                    for item in value.as_object().into_iter().flat_map(|o| o.values()) {
                        check(says, item)?;
                    }
                }
            }
            "minimum" if value.as_f64().is_some_and(|v| v < says.as_f64().unwrap_or(f64::MAX)) => {
                return Err(format!("{value} is less than {says}"));
            }
            "minimum" => {}
            other => return Err(format!("the test knows no `{other}`")),
        }
    }
    Ok(())
}

fn check_type(says: &Value, value: &Value) -> Result<(), String> {
    let is = |name: &str| match name {
        "null" => value.is_null(),
        "boolean" => value.is_boolean(),
        "integer" => value.is_u64() || value.is_i64(),
        "number" => value.is_number(),
        "string" => value.is_string(),
        "array" => value.is_array(),
        "object" => value.is_object(),
        _ => false,
    };
    let fits = match says {
        Value::Array(names) => names.iter().filter_map(Value::as_str).any(is),
        _ => says.as_str().is_some_and(is),
    };
    if fits { Ok(()) } else { Err(format!("{value} is no {says}")) }
}

/// Every property has to be there and be described: a schema that leaves one out describes less than there is.
fn check_properties(words: &serde_json::Map<String, Value>, value: &Value) -> Result<(), String> {
    let empty = serde_json::Map::new();
    let known = words.get("properties").and_then(Value::as_object).unwrap_or(&empty);
    let required: Vec<_> = words.get("required").and_then(Value::as_array).into_iter().flatten().collect();
    if words.get("additionalProperties") != Some(&Value::Bool(false)) || required.len() != known.len() {
        return Err("the schema leaves properties open".into());
    }
    let Some(object) = value.as_object() else { return Ok(()) };
    for name in object.keys() {
        known.get(name).ok_or_else(|| format!("the schema knows no `{name}`"))?;
    }
    for (name, schema) in known {
        let part = object.get(name).ok_or_else(|| format!("there is no `{name}`"))?;
        check(schema, part).map_err(|why| format!("{name}: {why}"))?;
    }
    Ok(())
}
